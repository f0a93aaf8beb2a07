"""Full fine-tuning: the parameters themselves are trained, some frozen, some at other rates.

    rate of an array = learning rate x product of the `rates` whose names mean it
                     x layer_decay^(depth + 1 - l)      in block l = 1 .. depth
                     x layer_decay^(depth + 1)          for tables of embeddings

Layer-wise decay is that of ULMFiT (arXiv:1801.06146), counted as in BEiT (arXiv:2106.08254): what
comes after the blocks has the whole rate. Weight decay follows the same rates.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Key

from mdlm.errors import InputError
from mdlm.names import TABLE
from mdlm.tuning.base import Path, Tuning, Widths, block_of, check_names, is_named, path_of
from mdlm.types import ArrayTree


@dataclass(frozen=True, kw_only=True)
class Full(Tuning):
    """Trains the parameters themselves.

    Args:
        frozen: names of arrays that stay as they are, e.g. ("embed", "blocks.mlp").
        rates: names of arrays and the factors of their learning rate: (("head", 2.0),).
        layer_decay: factor of the learning rate from one block to the one before it.
    """

    frozen: tuple[str, ...] = ()
    rates: tuple[tuple[str, float], ...] = ()
    layer_decay: float = 1.0

    def __post_init__(self):
        for name, factor in self.rates:
            if not 0 < factor < float("inf"):
                raise InputError(
                    f"rates: {name!r} has the factor {factor}; it must be a number above 0, and"
                    " `frozen` has the names of what is not trained"
                )
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay={self.layer_decay}: must be above 0 and at most 1")

    @property
    def keeps_base(self) -> bool:
        return bool(self.frozen)

    def check(self, shapes: ArrayTree, widths: Widths) -> None:
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        check_names("tune.frozen", self.frozen, paths)
        check_names("tune.rates", [name for name, _ in self.rates], paths)
        if all(self._is_frozen(path) for path in paths):
            raise InputError(f"tune.frozen={self.frozen}: nothing is left to train")

    def base(self, params: ArrayTree) -> ArrayTree:
        return _some(params, (), self._is_frozen)

    def start(self, key: Key[Array, ""], params: ArrayTree, widths: Widths) -> ArrayTree:
        if not self.frozen:
            return params
        return _some(params, (), lambda path: not self._is_frozen(path))

    def merged(self, base: ArrayTree, trained: ArrayTree) -> ArrayTree:
        return _joined(base, trained) if base else trained

    def scaled(
        self, optimizer: optax.GradientTransformation, depth: int
    ) -> optax.GradientTransformation:
        if not self.rates and self.layer_decay == 1:
            return optimizer

        def scale(updates: Any, params: Any) -> Any:
            by_rate = lambda path, u: u * self.factor(path_of(path), u.shape, depth)
            return jax.tree_util.tree_map_with_path(by_rate, updates)

        return optax.chain(optimizer, optax.stateless(scale))

    def factor(self, path: Path, shape: tuple[int, ...], depth: int) -> float | Array:
        """Returns the factor of the learning rate of an array, or of each block of a stacked one,
        with as many axes as the array."""
        own = 1.0
        for name, rate in self.rates:
            own *= rate if is_named(path, name) else 1.0
        blocks = block_of(path, shape, depth)
        if blocks is not None:
            steps = depth + 1 - jnp.arange(blocks.start, blocks.stop, dtype=jnp.float32)
            return (own * self.layer_decay**steps).reshape(-1, *[1] * (len(shape) - 1))
        return own * self.layer_decay ** (depth + 1) if path[-1] == TABLE else own

    def _is_frozen(self, path: Path) -> bool:
        return any(is_named(path, name) for name in self.frozen)


def _some(tree: Any, path: Path, is_chosen: Any) -> Any:
    """Returns the part of a tree whose arrays are chosen by their paths."""
    found = {}
    for name, part in tree.items():
        own = (*path, str(name))
        if not isinstance(part, dict):
            found |= {name: part} if is_chosen(own) else {}
        elif kept := _some(part, own, is_chosen):
            found[name] = kept
    return found


def _joined(one: Any, other: Any) -> Any:
    """Returns two parts of a tree as one, with its names in their order."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        raise ValueError("an array is in both parts")
    out = {**one, **other}
    out |= {name: _joined(one[name], other[name]) for name in one.keys() & other.keys()}
    return out
