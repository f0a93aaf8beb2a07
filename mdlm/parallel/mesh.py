"""The mesh of devices, and batches on it.

The mesh has four axes. `data` replicates the parameters and splits the rows of a batch; `fsdp`
splits both. `sequence` splits the positions of each row, for long rows; `tensor` splits the matmuls
inside the network. Rows are thus split over `data` and `fsdp` together, and devices that differ in
the other two axes work on the same rows. A single device is a mesh of 1 x 1 x 1 x 1, so no other
code depends on the number of devices.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64

from mdlm.errors import InputError

__all__ = ["MeshShape"]
DATA, FSDP, SEQUENCE, TENSOR = AXES = ("data", "fsdp", "sequence", "tensor")
ROWS = PartitionSpec((DATA, FSDP))


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """The number of devices along each axis. -1 (at most one axis) takes all that remain."""

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = self._sizes
        if any(size != -1 and size < 1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"mesh {self}: each size must be at least 1; one of them may be -1")

    def __str__(self) -> str:
        named = zip(AXES, self._sizes, strict=True)
        return " ".join(f"{axis}={size}" for axis, size in named if size != 1) or "data=1"

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.data, self.fsdp, self.sequence, self.tensor)

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (default: all). Raises InputError if the sizes do not fit.

        With several slices, `data` extends over the slices, and the other axes stay inside one.
        """
        devices = jax.devices() if devices is None else devices
        shape = self.sizes(len(devices))
        # TPU slices, or hosts with GPUs or CPUs, joined by a network that is slower than their own.
        slices = Counter(getattr(device, "slice_index", 0) for device in devices)
        if len(set(slices.values())) > 1:
            raise InputError(
                f"mesh {self}: slices or hosts must have equally many devices, these have"
                f" {sorted(slices.values())}"
            )
        types = (AxisType.Auto,) * 4
        try:
            if len(slices) == 1:
                return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
            between = over_slices(shape, len(slices))
            inside = tuple(n // m for n, m in zip(shape, between, strict=True))
            laid = mesh_utils.create_hybrid_device_mesh(
                inside, between, devices, allow_split_physical_axes=True
            )
            return Mesh(laid, AXES, axis_types=types)
        except NotImplementedError as error:  # on a torus of TPUs
            raise InputError(
                f"mesh {self} cannot be laid on this slice: each size must be "
                "a product of sizes of the slice, as 256 is in 16x16x16 and 64 is not"
            ) from error

    def sizes(self, devices: int) -> tuple[int, ...]:
        """The sizes of the axes on `devices` devices. Raises InputError if they do not fit."""
        fixed = math.prod(size for size in self._sizes if size != -1)
        if devices % fixed or (-1 not in self._sizes and devices != fixed):
            raise InputError(f"mesh {self} does not fit {devices} devices")
        rest = devices // fixed
        return tuple(rest if size == -1 else size for size in self._sizes)

    def fitting(self, devices: int) -> "MeshShape":
        """This shape if it fits `devices` devices, else all of them along one axis: `fsdp` if this
        shape splits the parameters, which then take the least memory, else `data`."""
        try:
            self.sizes(devices)
        except InputError:
            splits = self.fsdp != 1 or self.tensor != 1
            return MeshShape(data=1, fsdp=-1) if splits else MeshShape()
        return self


def over_slices(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
    """The number of slices, out of `slices` equal ones, that each axis extends over: `data`, the
    first, over as many as possible, since it communicates least."""
    between = []
    for size in shape:
        between.append(math.gcd(size, slices))
        slices //= between[-1]
    return tuple(between)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """First dimension split over `data` and `fsdp`."""
    return NamedSharding(mesh, ROWS)


def row_parts(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts that the rows of a batch are split into."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def rows_here(mesh: Mesh, batch_size: int) -> Int64[np.ndarray, " n"]:
    """The indices in a global batch of the rows that this process provides, ascending.

    These are the rows that its devices work on. Processes whose devices work on the same rows
    provide the same rows. On a torus of TPUs the rows of a process need not be consecutive.
    """
    slices = by_rows(mesh).addressable_devices_indices_map((batch_size,)).values()
    parts = {part[0].indices(batch_size)[:2] for part in slices if part is not None}
    return np.concatenate([np.arange(*part, dtype=np.int64) for part in sorted(parts)])


def check_batch(
    mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int = 1, together: int = 1
) -> None:
    """Raises InputError unless every device gets equally many rows in every micro-batch, with all
    rows of an example, so many `together`."""
    parts = row_parts(mesh)
    if batch_size < 1 or batch_size % (parts * accumulate * together):
        over = f"{parts} devices" if parts == mesh.size else f"data x fsdp = {parts}"
        micro = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        rows = f"rows, {together} of each example," if together > 1 else "rows"
        raise InputError(f"a batch of {batch_size} {rows} does not divide over {over}{micro}")


def on(mesh: Mesh | AbstractMesh) -> AbstractContextManager:
    """Within this context, traced code can ask for its mesh (`platform`, `sharding.traced`)."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform() -> str:
    """The platform that the traced program will run on: "cpu", "gpu" or "tpu".

    A mesh that is set (`on`, `jax.set_mesh`) decides, including a mesh of devices that are not
    present and are only compiled for.
    """
    if jax.sharding.get_abstract_mesh().abstract_device is None:
        return jax.default_backend()
    # JAX 0.10.0 knows only the kind of such a device.
    kind = device_kind().lower()
    return "tpu" if kind.startswith("tpu") else "cpu" if kind == "cpu" else "gpu"


def device_kind() -> str:
    """The kind of device that the traced program will run on, such as "NVIDIA H200".

    As for `platform`, a mesh that is set decides.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def put_on_mesh(mesh: Mesh, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a global batch (see `rows_here`), as arrays split over the mesh.

    Scalars are the same on every process and are replicated.
    """
    return {name: _placed(mesh, np.asarray(value)) for name, value in rows.items()}


def _placed(mesh: Mesh, value: np.ndarray) -> jax.Array:
    if value.ndim == 0:
        return jax.make_array_from_callback((), replicated(mesh), lambda _: value)
    parts = row_parts(mesh)
    count = len(value) // len(rows_here(mesh, parts)) * parts
    here = rows_here(mesh, count)

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(count)
        return value[np.searchsorted(here, start) : np.searchsorted(here, stop)]

    return jax.make_array_from_callback((count, *value.shape[1:]), by_rows(mesh), part)
