"""A mixture of experts in place of the MLP of a block, of the shape of DeepSeek-V3
(arXiv:2412.19437) and LLaDA2 (arXiv:2512.15745).

    s   = sigmoid(x W_r),   r = s + b         scores of the experts, and what they are ranked by
    G   = the `kept_groups` groups of experts with the largest sums of their two best r
    T   = the `chosen` experts in G with the largest r
    out = scaling * sum over e in T of s_e / (sum over T of s) * mlp_e(x)  +  shared mlp(x)

b selects and weighs nothing: it has no gradient, and no optimizer changes it. Scores are float32.
With one expert for each token, its weight is s_e scaling. No token is dropped: tokens are sorted by
expert, and each expert multiplies its run of them (`jax.lax.ragged_dot`).

On a mesh the experts are split over `tensor`: each device gathers the tokens of those that differ
from it in that axis, computes its own experts, and the sums are scattered back. Over `fsdp` and
`sequence` the kernels are split at rest, and gathered for use. A number of experts that `tensor`
does not divide is not split over it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from mdlm.models.layers import PRODUCT, Linear, uniform
from mdlm.models.mlp import GATES, MLP, MLPKind, activated
from mdlm.parallel.mesh import TENSOR
from mdlm.parallel.sharding import STREAM, at_rest, axes_of, fitted, traced


@dataclass(frozen=True, kw_only=True)
class Experts:
    """How many experts a block has and how they are chosen; the defaults are LLaDA2-mini's.

    Args:
        count: the number of experts.
        chosen: experts that each token is computed by.
        groups: groups of successive experts, as many in each.
        kept_groups: groups that the experts of a token are chosen from.
        hidden: hidden width of an expert.
        shared: experts that every token is computed by beside the chosen ones (one MLP of so many
            times `hidden`).
        scaling: factor of the weights of the chosen experts.
        dense: the first so many blocks have a plain MLP.
    """

    count: int = 256
    chosen: int = 8
    groups: int = 8
    kept_groups: int = 4
    hidden: int = 512
    shared: int = 1
    scaling: float = 2.5
    dense: int = 1

    def __post_init__(self):
        least = dict.fromkeys(("count", "chosen", "groups", "kept_groups", "hidden"), 1)
        for name, size in {**least, "shared": 0, "dense": 0}.items():
            if getattr(self, name) < size:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {size}")
        if self.count % self.groups or (self.groups > 1 and self.count < 2 * self.groups):
            raise ValueError(
                f"groups={self.groups}: must divide count={self.count} into groups of at least 2"
            )
        most = self.count // self.groups * self.kept_groups
        if self.kept_groups > self.groups or self.chosen > most:
            raise ValueError(
                f"kept_groups={self.kept_groups}, chosen={self.chosen}: at most groups="
                f"{self.groups}, and the {most} experts of the kept groups"
            )
        if self.scaling <= 0:
            raise ValueError(f"scaling={self.scaling}: must be above 0")

    def multiplications(self, kind: MLPKind, width: int) -> int:
        """Returns the multiplications of the MLP of a block for one token."""
        matrices = 3 if kind in GATES else 2
        mlps = matrices * width * self.hidden * (self.chosen + self.shared)
        return mlps + width * self.count


class Kernels(nnx.Module):
    """The matrices of one layer of all experts."""

    def __init__(self, count: int, fan_in: int, widths: tuple[int, ...], rngs: nnx.Rngs):
        self.widths = widths
        shape = count, fan_in, sum(widths)
        self.kernel = nnx.Param(uniform(rngs.params(), shape, fan_in), rest="experts")


class ExpertMLP(nnx.Module):
    """The experts of one block, and the choice among them."""

    def __init__(
        self, config: Experts, kind: MLPKind, width: int, rngs: nnx.Rngs, *, dtype: jnp.dtype
    ):
        self.config, self.dtype = config, dtype
        self.kind: MLPKind = kind
        count, hidden = config.count, config.hidden
        float32: Any = dict(dtype=jnp.dtype(jnp.float32), use_bias=False, split="whole")
        self.router = Linear(width, count, rngs, **float32)
        self.selection_bias = nnx.Param(jnp.zeros(count))
        self.inner = Kernels(count, width, (hidden,) * (2 if kind in GATES else 1), rngs)
        self.outer = Kernels(count, hidden, (width,), rngs)
        of_shared: Any = dict(dtype=dtype, use_bias=False, hidden=config.shared * hidden)
        self.shared: Any = MLP(kind, width, rngs, **of_shared) if config.shared else None

    def __call__(
        self, x: Float[Array, "b l d"]
    ) -> tuple[Float[Array, "b l d"], Float[Array, " e"]]:
        """Returns the output, and the number of tokens that each expert computed."""
        y, load = self._of_chosen(x)
        return (y if self.shared is None else y + self.shared(x)), load

    def route(self, x: Float[Array, "b l d"]) -> tuple[Int[Array, "b l k"], Float[Array, "b l k"]]:
        """Returns the chosen experts of each token and their weights."""
        return chosen(self.config, x, self.router.kernel[...], self.selection_bias[...])

    def _of_chosen(self, x):
        arrays = (self.router.kernel[...], self.selection_bias[...])
        kernels = [k.kernel[...].astype(self.dtype) for k in (self.inner, self.outer)]
        mesh = traced()
        if mesh is None:
            return self._on_device(x, *arrays, *kernels)
        whole, held = PartitionSpec(), fitted(mesh, x.shape, STREAM)
        is_split = mesh.shape[TENSOR] > 1 and self.config.count % mesh.shape[TENSOR] == 0
        here = PartitionSpec(TENSOR) if is_split else whole
        rests = [at_rest(mesh, k.shape, "experts") for k in kernels]
        rests = [rest if any(rest) else here for rest in rests]
        sharing = [axis for entry in held for axis in axes_of(entry)]
        spreads = is_split and TENSOR in sharing

        def on_device(x, router, bias, inner, outer):
            inner, outer = (_whole(k, rest) for k, rest in zip((inner, outer), rests, strict=True))
            y, load = self._on_device(
                x, router, bias, inner, outer, is_split=is_split, spreads=spreads
            )
            return y, jax.lax.psum(load, sharing)

        return jax.shard_map(
            on_device,
            in_specs=(held, whole, whole, *rests),
            out_specs=(held, whole),
            check_vma=False,
        )(x, *arrays, *kernels)

    def _on_device(self, x, router, bias, inner, outer, *, is_split=False, spreads=False):
        """Returns the sum over the chosen experts, and the load of the tokens `x`. With `is_split`
        this device has some of the experts, and with `spreads` the devices that have the others
        also have other tokens."""
        which, weights = chosen(self.config, x, router, bias)
        load = jnp.zeros(self.config.count).at[which.reshape(-1)].add(1.0)
        x = x.astype(self.dtype)
        if spreads:
            gather = lambda a: jax.lax.all_gather(a, TENSOR, axis=1, tiled=True)
            x, which, weights = gather(x), gather(which), gather(weights)
        if is_split:
            which = which - jax.lax.axis_index(TENSOR) * inner.shape[0]
        rows = lambda a: a.reshape(-1, a.shape[-1])
        y = mixed(self.kind, rows(x), rows(which), rows(weights), inner, outer).reshape(x.shape)
        if spreads:
            y = jax.lax.psum_scatter(y, TENSOR, scatter_dimension=1, tiled=True)
        elif is_split:
            y = jax.lax.psum(y, TENSOR)
        return y, jax.lax.stop_gradient(load)


def _whole(kernel: Array, rest: PartitionSpec) -> Array:
    """Gathers a kernel over all axes that split it but that of the experts."""
    for d, entry in enumerate(rest):
        if d > 0 and entry is not None:
            kernel = jax.lax.all_gather(kernel, axes_of(entry), axis=d, tiled=True)
    return kernel


def chosen(
    config: Experts,
    x: Float[Array, "b l d"],
    router: Float[Array, "d e"],
    bias: Float[Array, " e"],
) -> tuple[Int[Array, "b l k"], Float[Array, "b l k"]]:
    """Returns the experts of each token, and their weights."""
    exact: Any = dict(precision=jax.lax.Precision.HIGHEST)
    scores = jax.nn.sigmoid(jnp.dot(x.astype(jnp.float32), router, **exact))
    ranked = jax.lax.stop_gradient(scores + jnp.broadcast_to(bias, scores.shape))
    if config.groups > 1:
        by_group = ranked.reshape(*ranked.shape[:2], config.groups, -1)
        best = jax.lax.top_k(by_group, 2)[0].sum(-1)
        kept = jax.lax.top_k(best, config.kept_groups)[1]
        is_kept = jax.nn.one_hot(kept, config.groups, dtype=bool).any(-2)
        ranked = jnp.where(is_kept[..., None], by_group, -jnp.inf).reshape(ranked.shape)
    which = jax.lax.top_k(ranked, config.chosen)[1]
    weights = jnp.take_along_axis(scores, which, axis=-1)
    if config.chosen > 1:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return which, weights * config.scaling


def mixed(
    kind: MLPKind,
    x: Float[Array, "n d"],
    which: Int[Array, "n k"],
    weights: Float[Array, "n k"],
    inner: Float[Array, "e d i"],
    outer: Float[Array, "e h d"],
) -> Float[Array, "n d"]:
    """Returns the weighted sum of the chosen experts, of those whose kernels are given: others, and
    numbers below 0 in `which`, add nothing."""
    n, k = which.shape
    count, dtype = inner.shape[0], x.dtype
    expert = jnp.where((which >= 0) & (which < count), which, count).reshape(-1)
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=count + 1)[:count].astype(jnp.int32)
    # What is computed beyond the last run is undefined on some platforms, also in the gradient.
    is_own = (jnp.arange(n * k) < sizes.sum())[:, None]

    def product(rows, kernels):
        y = jax.lax.ragged_dot(rows, kernels, sizes, preferred_element_type=dtype)
        return checkpoint_name(y, PRODUCT)

    y = product(jnp.where(is_own, x[order // k], 0), inner)
    y = activated(kind, *jnp.split(y, inner.shape[2] // outer.shape[1], axis=-1))
    y = jnp.where(is_own, product(y, outer), 0)
    by_token = y[jnp.argsort(order)].reshape(n, k, -1).astype(jnp.float32)
    return jnp.einsum("nkd,nk->nd", by_token, weights).astype(dtype)


def balance(load: Float[Array, "n e"]) -> dict[str, Float[Array, ""]]:
    """Returns how evenly the experts are used, from the tokens that each one computed, by block:

    expert_load_largest: the largest load of an expert over the mean one, in the worst block; at
        least 1.
    expert_load_entropy: the entropy of the shares of the experts in nats, in the worst block; at
        most the logarithm of their number.
    """
    share = load / load.sum(-1, keepdims=True)
    entropy = -jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0).sum(-1)
    return {
        "expert_load_largest": (share.max(-1) * load.shape[-1]).max(),
        "expert_load_entropy": entropy.min(),
    }
