"""How arrays are split over the mesh: parameters at rest and in use, and activations.

At rest, between steps, kernels and tables are split over `fsdp`, `sequence` and `tensor` together,
and so are their gradients, moments and EMA; only `data` holds copies. Vectors (biases, scales) are
replicated. A layer declares how each of its arrays is used (`Rest`), and the array is split at rest
so that little is exchanged before it is used:

    columns  [i, o/T]  the output is split over `tensor`; at rest [i/FS, o/T]
    rows     [i/T, o]  the input is split over `tensor`, outputs are summed; at rest [i/T, o/FS]
    whole    [i, o]    at rest [i/FST, o]
    table    rows are looked up, or few `x @ w` are computed; at rest [i, o/FTS]
    experts  [e, i, o], of e experts, which are split over `tensor`; at rest [e/T, i/FS, o]

In use, a kernel is first cast to the dtype of its matmul, then gathered. Its gradient takes the
same way back and is thus summed over the devices in parts (a reduce-scatter). Without these
constraints the compiler gathers arrays of twice the size and sums whole gradients.

Activations `[b l d]` between the layers (`STREAM`) have their rows split over `data` and `fsdp` and
their positions over `sequence` and `tensor`, so that position-wise work is done once. Layers split
over `tensor` gather the positions over it (`SPREAD`) and scatter them again (arXiv:2205.05198).
Attention needs all positions: arrays split by `sequence` are then split by heads
(arXiv:2309.14509). Splits that do not divide a dimension are left out.

Without a mesh, on one device, and inside `jax.shard_map` these functions change nothing.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Shaped

from mdlm.parallel.mesh import DATA, FSDP, ROWS, SEQUENCE, TENSOR, row_parts
from mdlm.types import ArrayTree

Rest = Literal["columns", "rows", "whole", "table", "experts"]
Path = tuple[str, ...]

SMALL = 2**14
"""Arrays of fewer entries are replicated: gathering them costs more than keeping them."""
SPLITS: dict[Rest, dict[str, tuple[int, ...]]] = {
    "columns": {TENSOR: (-1,), FSDP: (-2, -1), SEQUENCE: (-2, -1)},
    "rows": {TENSOR: (-2,), FSDP: (-1, -2), SEQUENCE: (-1, -2)},
    "whole": {FSDP: (-2, -1), SEQUENCE: (-2, -1), TENSOR: (-2, -1)},
    "table": {FSDP: (-1, -2), TENSOR: (-1, -2), SEQUENCE: (-1, -2)},
    "experts": {TENSOR: (-3,), FSDP: (-2, -1), SEQUENCE: (-2, -1)},
}
"""The mesh axes in the order in which they split an array, and the dimensions that each may split:
the first that it divides."""

STREAM = PartitionSpec(*ROWS, (SEQUENCE, TENSOR))
SPREAD = PartitionSpec(*ROWS, SEQUENCE)
WIDE = PartitionSpec(*ROWS, SEQUENCE, TENSOR)
HEADS = PartitionSpec(*ROWS, None, (TENSOR, SEQUENCE))
"""Layouts of `[b l d]`, and of `[b l h d]` (the last two)."""
USES = {"columns": (None, TENSOR), "rows": (TENSOR, None), "whole": (None, None)}
"""Layouts of kernels in use."""


def axes_of(entry: Any) -> tuple[str, ...]:
    """The axes of the mesh that split a dimension, by its entry in a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def traced() -> AbstractMesh | None:
    """The mesh of the traced program (see `mesh.on`), or None if it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def at_rest(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], rest: Rest | None) -> PartitionSpec:
    """The split of a parameter array `[... i o]`, or `[... e i o]` of experts, between steps. Only
    these dimensions are split: the others are layers, which run one after another."""
    own = 3 if rest == "experts" else 2
    if rest is None or len(shape) < own or math.prod(shape[-own:]) < SMALL:
        return PartitionSpec()
    axes: dict[int, list[str]] = {d: [] for d in range(-own, 0)}
    for axis, dimensions in SPLITS[rest].items():
        for d in dimensions if mesh.shape[axis] > 1 else ():
            if shape[d] % math.prod(mesh.shape[a] for a in (*axes[d], axis)) == 0:
                axes[d].append(axis)
                break
    return PartitionSpec(*[None] * (len(shape) - own), *(tuple(axes[d]) or None for d in axes))


def parameter_sharding(
    mesh: Mesh | AbstractMesh, shapes: ArrayTree, rests: Mapping[Path, Rest]
) -> ArrayTree:
    """A sharding for each array of a tree of parameters, or of a tree with the same paths, such as
    an optimizer state.

    `rests` gives the use of parameters by the end of their path; all others are replicated.
    """
    longest = max(map(len, rests), default=0)

    def rule(path: Any, array: Any) -> NamedSharding:
        names = tuple(str(getattr(part, "key", "")) for part in path)
        ends: Any = (rests[names[i:]] for i in range(-longest, 0) if names[i:] in rests)
        return NamedSharding(mesh, at_rest(mesh, array.shape, next(ends, None)))

    return jax.tree_util.tree_map_with_path(rule, shapes)


def fitted(mesh: Mesh | AbstractMesh, shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
    """`spec` without the splits that do not divide a dimension of `shape`."""
    found: list[tuple[str, ...] | None] = []
    for size, entry in zip(shape, spec, strict=False):
        axes: tuple[str, ...] = ()
        for axis in axes_of(entry):
            if size % math.prod(mesh.shape[a] for a in (*axes, axis)):
                break
            axes += (axis,)
        found.append(axes or None)
    return PartitionSpec(*found)


def moved(
    x: Float[Array, "*s"], there: PartitionSpec, back: PartitionSpec | None = None
) -> Float[Array, "*s"]:
    """`x` with the sharding `there`; its cotangent gets the sharding `back` (None: the same)."""
    mesh = traced()
    if mesh is None:
        return x
    lay = lambda spec: (NamedSharding(mesh, fitted(mesh, x.shape, spec)),)
    return _moved(x, lay(there), lay(there if back is None else back))


def led(x: Float[Array, "*s"], *way: PartitionSpec) -> Float[Array, "*s"]:
    """`x` with each of these shardings in turn, and its cotangent in the reverse order. The
    exchange between them happens here, not before or after other operations on `x`."""
    mesh = traced()
    if mesh is None:
        return x
    stops = tuple(NamedSharding(mesh, fitted(mesh, x.shape, spec)) for spec in way)
    return _moved(x, stops, stops[::-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(x, there, back):
    """Through the shardings in `there`, one by one, and back through those in `back`.

    Unlike a plain constraint, the cotangent does not get the sharding `there` first: a cotangent
    that is a sum over devices is thus summed in parts.
    """
    for sharding in there:
        x = jax.lax.with_sharding_constraint(x, sharding)
    return x


def _moved_forward(x, there, back):
    return _moved(x, there, back), None


def _moved_backward(there, back, _, g):
    return (_moved(g, back, there),)


_moved.defvjp(_moved_forward, _moved_backward)


def in_use(
    kernel: Float[Array, "i o"],
    dtype: Any,
    rest: Rest,
    use: Literal["columns", "rows", "whole"],
    *,
    columns: slice | None = None,
) -> Float[Array, "i n"]:
    """A kernel, or some of its columns, cast to `dtype` and then gathered for its matmul."""
    mesh = traced()
    cut = (kernel if columns is None else kernel[:, columns]).astype(dtype)
    if mesh is None:
        return cut
    lies = at_rest(mesh, kernel.shape, rest)
    there = fitted(mesh, cut.shape, PartitionSpec(*USES[use]))
    way = [lies, there]
    if use != "whole":
        # The `tensor` axis moves first to the dimension of its use, while the parts are small.
        halfway = [
            (*(axis for axis in axes_of(own) if axis != TENSOR), *axes_of(now))
            for own, now in zip((*lies, None, None), there, strict=False)
        ]
        way.insert(1, PartitionSpec(*halfway))
    stops = tuple(NamedSharding(mesh, fitted(mesh, cut.shape, spec)) for spec in way)
    gathered: Any = _moved(cut, stops, stops[-2::-1])
    return gathered


def applied(
    fn: Callable[[Array, Array], Array], w: Float[Array, "n o"], x: Shaped[Array, "b l *s"]
) -> Float[Array, "..."]:
    """`fn(w, x)` for a "table" `w`: a look-up of its rows at `x`, or `x @ w`.

    Each device computes its columns for the `x` of the others, and the results are exchanged; if
    the results are larger than `w`, `w` is gathered instead.
    """
    mesh = traced()
    if mesh is None:
        return fn(w, x)
    b, l = x.shape[:2]
    shares = tuple(axis for axis in SPLITS["table"] if mesh.shape[axis] > 1)
    is_split = at_rest(mesh, w.shape, "table") == PartitionSpec(None, shares) and shares
    is_less = x.size + b * l * w.shape[1] / mesh.size < w.size
    if not (is_split and is_less) or b % row_parts(mesh):
        return moved(fn(in_use(w, w.dtype, "table", "whole"), x), STREAM)
    stream = fitted(mesh, (b, l), STREAM)
    splits = {axis: d for d, entry in enumerate(stream) for axis in axes_of(entry)}

    def on_device(w, x):
        y = fn(w, x)
        for axis in reversed(shares):
            if axis in splits:
                y = jax.lax.all_to_all(y, axis, splits[axis], 2, tiled=True)
            else:
                y = jax.lax.all_gather(y, axis, axis=2, tiled=True)
        return y

    specs = (PartitionSpec(None, shares), PartitionSpec(DATA))
    exchanged: Any = jax.shard_map(on_device, in_specs=specs, out_specs=stream, check_vma=False)
    return exchanged(w, x)


def splits_heads() -> bool:
    """Whether attention heads are split over the mesh of the traced program."""
    mesh = traced()
    return mesh is not None and mesh.shape[SEQUENCE] * mesh.shape[TENSOR] > 1


def is_tensor_parallel() -> bool:
    """Whether the mesh of the traced program has a `tensor` axis of several devices."""
    mesh = traced()
    return mesh is not None and mesh.shape[TENSOR] > 1
