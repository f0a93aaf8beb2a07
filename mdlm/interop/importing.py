"""Makes a run folder from weights in another project's layout."""

from dataclasses import replace
from pathlib import Path

import jax

from mdlm.data.dataset import TextData
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.identity import fingerprint
from mdlm.experiment.model import Model
from mdlm.interop import mdlm_torch
from mdlm.keys import stream
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import count_parameters
from mdlm.runs import weights as weights_file
from mdlm.runs.folder import RunFolder


def import_weights(
    weights: str | Path,
    experiment: Experiment,
    out: Path,
    *,
    source: str,
    overrides: list[tuple[str, str]],
    dtype: weights_file.WeightsDtype | None = None,
) -> int:
    """Makes a run folder that holds weights, in the layout of the MDLM repository, and no training
    state. They are kept in `dtype`, by default each in that of the file.

    Returns the number of parameters. Raises InputError if the sizes are not the experiment's, or
    a value is too large for the dtype.
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
    tensors = mdlm_torch.read(weights, dtype)
    params = {"network": mdlm_torch.stacked(tensors, network, model.vocab_size)}
    # What a process learns is not in the file: it starts as in training.
    start = stream(jax.random.key(experiment.seed), "init")
    learned = jax.jit(lambda key: model.init(key).get("process", {}))(start)
    if learned:
        params["process"] = learned
    folder.begin(source, overrides, experiment)
    tokenizer.save(folder.data)
    weights_file.write(folder.path, params, step=0, fingerprint=fingerprint(experiment))
    return count_parameters(params["network"])
