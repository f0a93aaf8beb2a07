"""The experiment that `train_step` and `sample` measure, made in memory, without data.

The command line gives its sizes (`SIZES`), and any other setting by its dotted name, as in
`mdlm train`: `--network.remat false`.

The PyTorch reference supports the sizes only. Together with it, settings that change *what* is
computed (another norm, another objective) are refused.
"""

import argparse
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from mdlm.config.overrides import apply
from mdlm.data.dataset import TextData
from mdlm.data.packing import Wrap
from mdlm.data.sources import TextFiles
from mdlm.data.tokenizers import Bytes
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment, Training
from mdlm.experiment.model import Model
from mdlm.models.dit import DiT
from mdlm.models.layers import compute_dtype
from mdlm.objectives.nelbo import Nelbo
from mdlm.optim import AdamW
from mdlm.parallel.mesh import MeshShape
from mdlm.samplers.ancestral import Ancestral
from mdlm.types import ArrayTree, Vocab

SIZES = {
    "width": 256,
    "depth": 4,
    "heads": 4,
    "length": 128,
    "vocab": 1024,
    "batch": 16,
    "dropout": 0.1,
    "dtype": "float32",
}

REFERENCE_HAS = {
    "network.remat", "network.attention", "network.logits_chunk", "network.cond_dim",
    "mesh.data", "mesh.fsdp", "mesh.sequence", "mesh.tensor",
    "optimizer.learning_rate", "optimizer.warmup_steps",
    "optimizer.clip_norm", "train.ema_decay",
}  # fmt: skip
"""Settings that the PyTorch reference supports, or that change only how ours is computed."""


def experiment(args: argparse.Namespace, others: Sequence[str] = ()) -> Experiment:
    """The experiment of the sizes in `args`, with the settings `--name value` of `others`.

    Its loss is the paper's, as in the PyTorch reference. The data that it names are never read.
    """
    found = Experiment(
        name="benchmark",
        data=TextData(
            source=TextFiles(train="none"),
            tokenizer=Bytes(),
            packing=Wrap(length=args.length, row_specials=False),
        ),
        network=DiT(
            width=args.width,
            depth=args.depth,
            heads=args.heads,
            dropout=args.dropout,
            dtype=args.dtype,
        ),
        objective=Nelbo(reconstruction=False),
        optimizer=AdamW(learning_rate=3e-4, warmup_steps=100),
        sampler=Ancestral(steps=getattr(args, "steps", 128)),
        train=Training(steps=100_000, batch_size=args.batch),
        mesh=MeshShape(data=1),
    )
    return apply(found, _assignments(others))


def torch_reference_for(args: argparse.Namespace, others: Sequence[str]) -> ModuleType:
    """Imports the module of the PyTorch reference.

    Raises InputError if PyTorch is missing, or if the reference does not support a setting.
    """
    unknown = [name for name, _ in _assignments(others) if name not in REFERENCE_HAS]
    if compute_dtype(args.dtype) != "float32" or unknown:
        what = f"--{unknown[0]}" if unknown else f"--dtype {args.dtype}"
        raise InputError(
            f"the PyTorch reference is the paper's, in float32, without {what}; add --no-torch"
        )
    try:
        from benchmarks import torch_reference
    except ImportError as error:
        raise InputError(
            f"PyTorch is missing ({error}): pip install '.[bench]', or give --no-torch"
        ) from error
    return torch_reference


def _assignments(words: Sequence[str]) -> list[tuple[str, str]]:
    """Splits `--a.b value` and `--a.b=value` into pairs. Raises InputError if a word is neither."""
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in name or not (equals or rest):
            raise InputError(
                f"{word}: neither an option nor a setting with its value (--a.b value)"
            )
        pairs.append((name, value if equals else rest.pop(0)))
    return pairs


def dtype_of(experiment: Experiment) -> str:
    """Name of the dtype of the network's matmuls, with "auto" resolved."""
    network: Any = experiment.network
    return compute_dtype(network.dtype).name


def model(experiment: Experiment, columns: int) -> Model:
    """The model over a vocabulary of `columns` ids, the last of which is the mask."""
    return Model(experiment, Vocab(size=columns, mask_id=columns - 1))


def moved(params: ArrayTree) -> ArrayTree:
    """`params` moved off their initial values, because zeros would multiply faster.

    NumPy arrays: a step donates its inputs, and these are used again.
    """
    rng = np.random.default_rng(0)

    def move(array):
        noise = rng.standard_normal(array.shape, np.float32)
        return np.asarray(array) + np.float32(0.02) * noise

    return jax.tree.map(move, params)


def tokens(columns: int, batch: int, length: int) -> np.ndarray:
    """Random clean tokens `[b l]`, none of them the mask."""
    drawn = np.random.default_rng(0).integers(0, columns - 1, (batch, length))
    return drawn.astype(np.int32)


def batch_of(columns: int, batch: int, length: int) -> dict[str, np.ndarray]:
    """A batch of full rows, as the data loader makes it."""
    full = np.ones((batch, length), bool)
    return {
        "tokens": tokens(columns, batch, length),
        "loss_mask": full,
        "is_valid": full,
        "row": np.arange(batch, dtype=np.int32),
        "rows": np.asarray(batch, np.int32),
    }
