"""The contract of a way to train a network: which arrays change, and which stay as they are.

The parameters of a run are cut in two trees:

    base      arrays that no step changes; they lie in the run folder once (`base.safetensors`)
    trained   arrays of the optimizer, the EMA and the checkpoints
    merged    the parameters that the network is run with, a function of both

Arrays are chosen by their names. A name is one part of an array's path, or several in a row with
dots: `mlp` and `blocks.mlp` both mean `network.blocks.mlp.inner.kernel` and all others below it.
"""

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import optax
from jax import Array
from jaxtyping import Key

from mdlm.config.components import nearest
from mdlm.errors import InputError
from mdlm.names import STACK
from mdlm.types import ArrayTree

Path = tuple[str, ...]
Widths = Mapping[Path, tuple[int, ...]]
"""The columns of each of the matrices that lie side by side in an array, by its path."""


@dataclass(frozen=True, kw_only=True)
class Tuning(abc.ABC):
    """Which parameters of a run are trained, and how."""

    @property
    @abc.abstractmethod
    def keeps_base(self) -> bool:
        """Whether there are arrays that stay as they are."""

    @abc.abstractmethod
    def check(self, shapes: ArrayTree, widths: Widths) -> None:
        """Raises InputError if parameters of these shapes cannot be trained in this way."""

    @abc.abstractmethod
    def base(self, params: ArrayTree) -> ArrayTree:
        """Returns the arrays that stay as they are."""

    @abc.abstractmethod
    def start(self, key: Key[Array, ""], params: ArrayTree, widths: Widths) -> ArrayTree:
        """Returns the arrays to train, as they are before the first step from `params`."""

    @abc.abstractmethod
    def merged(self, base: ArrayTree, trained: ArrayTree) -> ArrayTree:
        """Returns the parameters that the network is run with."""

    def scaled(
        self, optimizer: optax.GradientTransformation, depth: int
    ) -> optax.GradientTransformation:
        """Returns the optimizer with the learning rates of the arrays to train, of a network of
        `depth` blocks."""
        return optimizer


def path_of(path: tuple) -> Path:
    """Returns the names along the path of a leaf of a tree of parameters."""
    return tuple(str(getattr(part, "key", "")) for part in path)


def is_named(path: Path, name: str) -> bool:
    """Whether a name means the array of a path."""
    parts = tuple(name.split("."))
    return any(path[i : i + len(parts)] == parts for i in range(len(path)))


def check_names(option: str, names: Iterable[str], paths: Iterable[Path]) -> None:
    """Raises InputError if a name means none of the arrays. `option` begins the message."""
    paths = list(paths)
    for name in names:
        if not any(is_named(path, name) for path in paths):
            runs = [p[i:j] for p in paths for j in range(len(p) + 1) for i in range(j)]
            known = dict.fromkeys(".".join(run) for run in runs if len(run) == 1 or "." in name)
            raise InputError(f"{option}={name!r}: no array has this name{nearest(name, known)}")


def block_of(path: Path, shape: tuple[int, ...], depth: int) -> range | None:
    """Returns the blocks that a stacked array has, counted from 1; None outside of the blocks."""
    if STACK not in path:
        return None
    is_first = path[path.index(STACK) + 1] == "first"
    return range(1, shape[0] + 1) if is_first else range(depth - shape[0] + 1, depth + 1)
