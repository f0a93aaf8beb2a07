"""Makes a run folder from weights in another project's layout."""

from dataclasses import replace
from pathlib import Path

import jax

from mdlm.config import records
from mdlm.data.dataset import TextData
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.identity import fingerprint
from mdlm.experiment.model import Model
from mdlm.interop import mdlm_torch
from mdlm.keys import of_seed, stream
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import count_parameters
from mdlm.runs import weights as weights_file
from mdlm.runs.finite import check_finite
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
    """Makes a run folder with weights and no training state, from weights in the layout of the
    MDLM repository. They are stored in `dtype`, by default each in its dtype in the file.

    Returns the number of parameters of the network. Raises InputError if the shapes do not fit the
    experiment, or a value is too large for `dtype`.
    """
    folder = RunFolder(out)
    if folder.exists:
        raise InputError(f"{out} is already a run folder: choose a new or empty folder")
    folder.check(experiment)
    network = experiment.network
    if not isinstance(network, DiT | CausalTransformer):
        raise InputError(
            f"network={type(network).__name__}(...): weights can be imported for DiT and"
            " CausalTransformer"
        )
    records.record(experiment)  # raises if it cannot be recorded
    tensors = mdlm_torch.read(weights, dtype)  # before text is read, or the hub is asked
    data = experiment.data
    if isinstance(data, TextData) and not data.tokenizer.needs_text:
        # The text is not needed, so neither is its store.
        data = replace(data, store=None)
    tokenizer = data.load(None).tokenizer
    model = Model(experiment, tokenizer.vocab)
    params = {"network": mdlm_torch.stacked(tensors, network, model.vocab_size)}
    # The file lacks the parameters of a process that learns: they start as in training.
    start = stream(of_seed(experiment.seed), "init")
    learned = jax.jit(lambda key: model.init(key).get("process", {}))(start)
    if learned:
        params["process"] = learned
    check_finite(params, str(weights), "they are of no use: import other weights")
    folder.begin(source, overrides, experiment)
    folder.save_tokenizer(tokenizer.files())
    weights_file.write(folder.path, params, step=0, fingerprint=fingerprint(experiment))
    return count_parameters(params["network"])
