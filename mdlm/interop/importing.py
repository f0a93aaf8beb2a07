"""Makes run folders from checkpoints in other people's layouts."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from mdlm.config import records
from mdlm.config.overrides import apply
from mdlm.data.dataset import TextData
from mdlm.data.packing import Wrap
from mdlm.data.text.no_text import NoText
from mdlm.data.tokenizers import Pretrained
from mdlm.data.tokens.special_tokens import end_of
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.identity import fingerprint
from mdlm.experiment.model import Model
from mdlm.interop import mdlm_torch, table
from mdlm.interop.as_diffusion import NewTokens, as_diffusion
from mdlm.interop.checkpoint import Checkpoint
from mdlm.interop.layout import LONGEST, Layout, Parts
from mdlm.interop.layouts import layout_of
from mdlm.interop.tokens import chat_of, tokenizer_of
from mdlm.keys import of_seed, stream
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import count_parameters
from mdlm.runs import agreement
from mdlm.runs import weights as weights_file
from mdlm.runs.finite import check_finite, is_finite
from mdlm.runs.folder import RunFolder

Report = Callable[[str, int, int], None]
"""Called with what is done and its unit, the amount done, and the total."""


def import_folder(
    folder: Path,
    out: Path,
    *,
    overrides: list[tuple[str, str]],
    tokenizer: str | None = None,
    mask: str | None = None,
    dtype: weights_file.WeightsDtype | None = None,
    to_diffusion: bool = False,
    report: Report = lambda *_: None,
) -> tuple[Experiment, int]:
    """Makes a run folder from a folder in the form of the Hugging Face hub.

    The experiment is made from config.json; `overrides` replace some of its values. Tensors are
    read one at a time, cast to `dtype` (None: kept as they are), and written to the run folder.
    `tokenizer` and `mask` name a tokenizer and its mask token, where the folder does not say.
    `to_diffusion` makes a diffusion model of a causal network (`mdlm.interop.as_diffusion`).

    Returns the experiment and the number of parameters. Raises InputError, before anything is
    written, if the folder is of a layout that is not known, or something of it does not fit.
    """
    run = _new(out)
    checkpoint = Checkpoint(folder)
    layout = layout_of(checkpoint.config)
    parts = _parts(layout, checkpoint)
    chosen = tokenizer_of(checkpoint, parts, tokenizer, mask)
    built = chosen.build([])
    has_end = end_of(built.vocab) is not None
    new = None
    if to_diffusion:
        parts, new = as_diffusion(parts, built.vocab, is_new=chosen.mask is None)
    experiment = apply(_experiment(layout, parts, chosen, has_end), overrides)
    agreement.check(run, experiment)
    records.record(experiment)
    if experiment.data.tokenizer != chosen:
        built = experiment.data.tokenizer.build([])
    model = Model(experiment, built.vocab)
    network = experiment.network
    new = new or NewTokens.none(model.columns)
    places = list(table.slots(layout.table(network), network, new.columns))
    names = {layout.plain(name): name for name in checkpoint.shapes}
    found = {plain: checkpoint.shapes[name] for plain, name in names.items()}
    table.check(places, found, layout.ignored, str(folder))

    there = {place.tensor: checkpoint.dtype(names[place.tensor]) for place in places}
    dtypes = _dtypes(places, there, dtype)
    built.chat = chat_of(checkpoint, parts)

    def copy() -> None:
        run.save_data(built.files())
        shapes = table.array_shapes(network, model.columns)
        sizes = {f"network.{path}": (shape, dtypes[path]) for path, shape in shapes.items()}
        read = _reader(checkpoint, names, dtype)
        bytes_of = {n: int(np.prod(found[n])) * kind.itemsize for n, kind in there.items()}
        done, total = 0, sum(bytes_of.values())
        with weights_file.filled(run.path, sizes, fingerprint=fingerprint(experiment)) as arrays:
            inside = {name.removeprefix("network."): array for name, array in arrays.items()}
            for name in table.fill(places, read, new.old(inside)):
                done += bytes_of[name]
                report(f"importing {folder.name}, bytes", done, total)
            new.fill(inside)

    is_new = not out.exists()
    try:
        run.begin(None, overrides, experiment, copy=copy)
    except BaseException:
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise
    return experiment, sum(int(np.prod(place.shape)) // place.part[1] for place in places)


def _dtypes(
    places: list[table.Slot],
    there: Mapping[str, np.dtype],
    asked: weights_file.WeightsDtype | None,
) -> dict[str, np.dtype]:
    """Returns the dtype of each array: the one asked for, or the widest of its tensors."""
    found: dict[str, np.dtype] = {}
    for place in places:
        own = np.dtype(asked) if asked else there[place.tensor]
        known = found.get(place.path, own)
        found[place.path] = own if known == own else np.result_type(known, own)
    return found


def _reader(
    checkpoint: Checkpoint, names: Mapping[str, str], asked: weights_file.WeightsDtype | None
) -> table.Read:
    """Returns the function that reads a tensor, in the dtype asked for.

    It raises InputError if a number is not finite, or too large for the dtype.
    """

    def read(name: str) -> np.ndarray:
        value = checkpoint.read(names[name])
        if not is_finite(value):
            raise InputError(
                f"{checkpoint.folder}: {names[name]} has values that are not finite; they are of no"
                " use: fetch the checkpoint again"
            )
        return value if asked is None else weights_file.cast(name, value, np.dtype(asked))

    return read


def _new(out: Path) -> RunFolder:
    folder = RunFolder(out)
    if folder.exists:
        raise InputError(f"{out} is already a run folder: choose a new or empty folder")
    return folder


def _parts(layout: Layout, checkpoint: Checkpoint) -> Parts:
    try:
        return layout.parts(checkpoint.config)
    except ValueError as error:  # sizes that no network has
        raise InputError(f"{checkpoint.config.title}: {error}") from error


def _experiment(layout: Layout, parts: Parts, tokenizer: Pretrained, has_end: bool) -> Experiment:
    """Returns the experiment that a configuration describes, without text of its own. `has_end`
    says whether the tokenizer has a token for the end of a text."""
    length = min(parts.length, LONGEST)
    size = getattr(parts.network, "block_size", 0)
    rows = length - length % size if size else length
    return Experiment(
        name=layout.name,
        data=TextData(
            source=NoText(),
            tokenizer=tokenizer,
            packing=Wrap(length=rows, row_specials=False, eos=has_end),
        ),
        network=parts.network,
        process=parts.process,
        parameterization=parts.parameterization,
        objective=parts.objective,
        sampler=parts.sampler,
        time_condition=parts.time_condition,
    )


def import_weights(
    weights: str | Path,
    experiment: Experiment,
    out: Path,
    *,
    source: str,
    overrides: list[tuple[str, str]],
    dtype: weights_file.WeightsDtype | None = None,
) -> int:
    """Makes a run folder with weights and no training state, from one file of weights in the layout
    of the MDLM repository. They are stored in `dtype`, by default each in its dtype in the file.

    Returns the number of parameters of the network. Raises InputError if the shapes do not fit the
    experiment, or a value is too large for `dtype`.
    """
    folder = _new(out)
    agreement.check(folder, experiment)
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
    params = {"network": mdlm_torch.stacked(tensors, network, model.columns)}
    # The file lacks the parameters of a process that learns: they start as in training.
    start = stream(of_seed(experiment.seed), "init")
    learned = jax.jit(lambda key: model.init(key).get("process", {}))(start)
    if learned:
        params["process"] = learned
    check_finite(params, str(weights), "they are of no use: import other weights")
    folder.begin(source, overrides, experiment)
    folder.save_data(tokenizer.files())
    weights_file.write(folder.path, params, step=0, fingerprint=fingerprint(experiment))
    return count_parameters(params["network"])
