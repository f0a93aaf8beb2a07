"""The mesh of devices, and what lies where on it.

Two axes. `data` replicates the parameters and splits the batch; `fsdp` splits both. A batch is
split over both axes together; each large parameter is split over `fsdp` along its largest
dimension that divides. One device is a mesh of 1 x 1, so nothing else knows how many there are.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mdlm.types import ArrayTree, InputError

DATA, FSDP = "data", "fsdp"
AXES = (DATA, FSDP)
ROWS = PartitionSpec(AXES)
SMALL = 2**14
"""Parameters of fewer entries are replicated: gathering them costs more than keeping them."""


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How many devices each axis gets. -1 (one axis at most) takes all that are left."""

    data: int = -1
    fsdp: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp)
        if any(size != -1 and size < 1 for size in sizes) or sizes == (-1, -1):
            raise ValueError(f"mesh {sizes}: axis sizes are positive, one of them may be -1")

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over `devices` (default: all). InputError where the sizes do not fit."""
        devices = jax.devices() if devices is None else devices
        shape = self.sizes(len(devices))
        try:
            return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
        except NotImplementedError as error:  # on a torus of TPUs
            raise InputError(
                f"mesh data={shape[0]} fsdp={shape[1]} cannot be laid on this slice: each size is "
                "a product of some of the slice's own, as 256 is in 16x16x16 and 64 is not"
            ) from error

    def sizes(self, devices: int) -> tuple[int, ...]:
        """The axes' sizes on so many devices. InputError where they do not fit."""
        fixed = math.prod(size for size in (self.data, self.fsdp) if size != -1)
        open_axis = -1 in (self.data, self.fsdp)
        if devices % fixed or (not open_axis and devices != fixed):
            raise InputError(
                f"mesh data={self.data} fsdp={self.fsdp} does not fit {devices} devices"
            )
        rest = devices // fixed
        return tuple(rest if size == -1 else size for size in (self.data, self.fsdp))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """First dimension split over all devices."""
    return NamedSharding(mesh, ROWS)


def parameter_sharding(mesh: Mesh | AbstractMesh, shapes: ArrayTree) -> ArrayTree:
    """A sharding for each array of a tree: the largest dimension that `fsdp` divides is split."""
    parts = mesh.shape[FSDP]

    def rule(array) -> NamedSharding:
        if parts == 1 or math.prod(array.shape) < SMALL:
            return replicated(mesh)
        for axis in sorted(range(len(array.shape)), key=lambda i: -array.shape[i]):
            if array.shape[axis] % parts == 0:
                return NamedSharding(mesh, PartitionSpec(*[None] * axis, FSDP))
        return replicated(mesh)

    return jax.tree.map(rule, shapes)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int = 1) -> None:
    """InputError unless every device gets the same number of rows in every micro-batch."""
    if batch_size < 1 or batch_size % (mesh.size * accumulate):
        micro = f" in {accumulate} micro-batches" if accumulate > 1 else ""
        raise InputError(
            f"a batch of {batch_size} rows does not divide over {mesh.size} devices{micro}"
        )


def on(mesh: Mesh | AbstractMesh) -> AbstractContextManager:
    """Within it, what is traced may ask which mesh it is for (`divides_rows`, `shard_map`)."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform() -> str:
    """Where the program that is being traced will run: "cpu", "gpu" or "tpu".

    A mesh that is set (`on`, `jax.set_mesh`) decides, also one of devices that are not here and are
    only compiled for.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    # All that JAX 0.10.0 knows of the device is its kind.
    kind = device.device_kind.lower()
    return "tpu" if kind.startswith("tpu") else "cpu" if kind == "cpu" else "gpu"


def divides_rows(rows: int) -> bool:
    """Whether the mesh that is traced for (see `on`) has several devices that share `rows` rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and rows % mesh.size == 0


def place(mesh: Mesh, rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a global batch, as arrays split over the mesh.

    Scalars are the same on every process and are replicated.
    """
    return {
        name: jax.make_array_from_process_local_data(
            by_rows(mesh) if np.ndim(value) else replicated(mesh), value
        )
        for name, value in rows.items()
    }
