"""LoRA (arXiv:2106.09685): a matrix of low rank is added to each chosen kernel, and trained alone.

    W = W_0 + (alpha / rank) A B,     A [i r] uniform in +-1/sqrt(i),  B [r o] zero at first

in the order of the kernels here, `x W`; the paper writes B A for its transpose. Layers and experts
are leading axes. Where several matrices lie side by side in one kernel (queries, keys and values,
or a gate and what it multiplies) each has an A and a B of its own, numbered in their order.
The first step has the loss of the base network, as B is 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from mdlm.errors import InputError
from mdlm.keys import stream
from mdlm.names import KERNEL, MODULATION, STACK
from mdlm.tuning.base import Path, Tuning, Widths, check_names, is_named, path_of
from mdlm.types import ArrayTree

ADAPTER = "adapter"
"""The component of the parameters, beside `network` and `process`, that is trained."""
OWN = "head"
"""The component that is trained as it is: a head that belongs to the new task."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuning):
    """Trains a matrix of low rank for each chosen kernel, and the experiment's head, if it has one.

    Args:
        rank: the rank of the added matrices, at most the inputs and outputs of each kernel.
        alpha: the added matrices are multiplied by alpha / rank.
        kernels: names of kernels, e.g. ("qkv", "mlp.inner"); none means all of the blocks but those
            that read the noise level.
    """

    rank: int = 8
    alpha: float = 16.0
    kernels: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise InputError(
                f"rank={self.rank}, alpha={self.alpha}: rank must be at least 1, alpha above 0"
            )

    @property
    def keeps_base(self) -> bool:
        return True

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def check(self, shapes: ArrayTree, widths: Widths) -> None:
        leaves = _leaves(shapes)
        check_names(
            "tune.kernels",
            self.kernels,
            [path for path in leaves if path[-1] == KERNEL and path[0] != OWN],
        )
        for path, leaf in leaves.items():
            if self.is_chosen(path):
                size = min(leaf.shape[-2], *widths.get(path, leaf.shape[-1:]))
                if self.rank > size:
                    raise InputError(
                        f"tune.rank={self.rank}: above the width of {'.'.join(path)}, {size}; give"
                        " a smaller rank, or name other kernels"
                    )

    def is_chosen(self, path: Path) -> bool:
        """Whether the array of a path gets a matrix of low rank."""
        if path[-1] != KERNEL or path[0] == OWN:
            return False
        if not self.kernels:
            return STACK in path and MODULATION not in path
        return any(is_named(path, name) for name in self.kernels)

    def base(self, params: ArrayTree) -> ArrayTree:
        return {name: part for name, part in params.items() if name != OWN}

    def start(self, key: Key[Array, ""], params: ArrayTree, widths: Widths) -> ArrayTree:
        tree: dict[str, Any] = {}
        for path, leaf in _leaves(params).items():
            if not self.is_chosen(path):
                continue
            node = tree
            for name in path:
                node = node.setdefault(name, {})
            *leading, fan_in, fan_out = leaf.shape
            bound = 1 / math.sqrt(fan_in)
            for i, width in enumerate(widths.get(path, (fan_out,))):
                own = stream(key, ".".join((*path, str(i))))
                shape = (*leading, fan_in, self.rank)
                a = jax.random.uniform(own, shape, jnp.float32, -bound, bound)
                node[str(i)] = {"a": a, "b": jnp.zeros((*leading, self.rank, width))}
        return {ADAPTER: tree} | {name: part for name, part in params.items() if name == OWN}

    def merged(self, base: ArrayTree, trained: ArrayTree) -> ArrayTree:
        def add(path: tuple, kernel: Array) -> Array:
            node: Any = trained[ADAPTER]
            for name in path_of(path):
                node = node.get(name)
                if node is None:
                    return kernel
            return kernel + self.scale * product(node)

        merged = jax.tree_util.tree_map_with_path(add, base)
        return {**merged, OWN: trained[OWN]} if OWN in trained else merged


def product(parts: Mapping[str, Mapping[str, Array]]) -> Float[Array, "*n i o"]:
    """Returns A B of a kernel, in float32; those of matrices that lie side by side, side by side.
    `parts` has A and B of each, by its number."""
    exact: Any = dict(precision=jax.lax.Precision.HIGHEST)
    pairs = (parts[str(i)] for i in range(len(parts)))
    return jnp.concatenate([jnp.matmul(pair["a"], pair["b"], **exact) for pair in pairs], axis=-1)


def _leaves(tree: ArrayTree) -> dict[Path, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): leaf for path, leaf in leaves}
