"""Makes a run folder from weights in another project's layout."""

from dataclasses import replace
from pathlib import Path

import jax

from mdlm.data.dataset import TextData
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.model import Model
from mdlm.interop import mdlm_torch
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import count_parameters
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.train.step import create_state


def import_weights(
    weights: str | Path,
    experiment: Experiment,
    out: Path,
    *,
    source: str,
    overrides: list[tuple[str, str]],
) -> int:
    """Makes a run folder, at step 0, from weights in the layout of the MDLM repository.

    Returns the number of parameters. InputError where the sizes are not the experiment's.
    """
    folder = RunFolder(out)
    if folder.exists:
        raise InputError(f"{out} is a run folder already")
    folder.check(experiment)
    network = experiment.network
    if not isinstance(network, DiT | CausalTransformer):
        raise InputError(f"no published layout is known for network={type(network).__name__}(...)")
    data = experiment.data
    if isinstance(data, TextData) and not data.tokenizer.needs_text:
        # The text has no part in this, prepared or not.
        data = replace(data, store=None)
    tokenizer = data.load(None).tokenizer
    model = Model(experiment, tokenizer.vocab)
    params = mdlm_torch.params_from(mdlm_torch.read(weights), network, model.columns)
    folder.begin(source, overrides, experiment)
    tokenizer.save(folder.data)
    tx = experiment.optimizer.build(experiment.train.steps)
    state = create_state(model, tx, experiment.mesh.build(), jax.random.key(experiment.seed))
    imported = {"network": jax.tree.map(lambda a: jax.numpy.asarray(a), params)}
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(0, {**state, "params": imported, "ema": imported}, {"position": 0})
    return count_parameters(params)
