"""Hardware that is named but not here: `v5e:4x4`, `v5p:2x2x4`, `gpu:8xH100`.

The TPU compiler is a part of the `libtpu` wheel and needs no TPU. JAX asks it for the devices of a
slice by name; a mesh over them is compiled for like any other (`jax.experimental.topologies`).
There is no such thing for GPUs, nor for TPU v4, whose chips JAX shows as two devices there: these
have a mesh of sizes only, enough to know what lies where.
"""

import importlib.util
import math
import re
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from mdlm.errors import InputError
from mdlm.parallel.mesh import AXES, MeshShape
from mdlm.profiling.peak import CHIPS, Chip

SHAPES = {"v4": "4x4x4", "v5e": "4x4", "v5p": "2x2x4", "v6e": "8x8"}
"""Of each generation of TPUs, a slice as one writes it."""
ACCELERATORS = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
"""What libtpu calls a slice: this name and so many times its chips."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """So many chips of a name in `CHIPS`; `text` is how the whole was named."""

    text: str
    name: str
    chips: int

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """From `v5e:4x4` or `gpu:8xH100`. InputError, with the known names, for anything else."""
        name, _, shape = text.partition(":")
        if name in SHAPES and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
            chips = math.prod(int(n) for n in shape.split("x"))
            if len(shape.split("x")) == len(SHAPES[name].split("x")):
                return cls(text=text, name=name, chips=chips)
        gpus = re.fullmatch(r"([1-9]\d*)x(\w+)", shape)
        if name == "gpu" and gpus and gpus[2] in CHIPS and gpus[2] not in SHAPES:
            return cls(text=text, name=gpus[2], chips=int(gpus[1]))
        slices = ", ".join(f"{name}:{shape}" for name, shape in SHAPES.items())
        boxes = ", ".join(f"gpu:8x{name}" for name in CHIPS if name not in SHAPES)
        raise InputError(
            f"--topology {text}: unknown; it is written like {slices} (chips along each axis of "
            f"the slice), or {boxes}"
        )

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name]

    @property
    def is_compiled_for(self) -> bool:
        """Whether there is a compiler for it that works without the hardware."""
        return self.name in SHAPES and self.name != "v4"

    def check_compiler(self) -> None:
        """InputError where libtpu is not installed."""
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(
                f"--topology {self.text}: the TPU compiler is missing: pip install 'mdlm[tpu]'"
            )

    @property
    def environment(self) -> dict[str, str]:
        """Variables that libtpu looks for as soon as JAX is imported."""
        kind, cores = ACCELERATORS[self.name]
        return {
            "JAX_PLATFORMS": "cpu",
            # Otherwise libtpu asks a server that only machines with TPUs have.
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": f"{kind}-{cores * self.chips}",
            "TPU_WORKER_HOSTNAMES": "localhost",
            # One process at a time may have a TPU; compiling takes none.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }

    def sizes(self, shape: MeshShape) -> AbstractMesh:
        """A mesh without devices. InputError where its sizes do not fit the chips."""
        # TPUs by name on GPUs too: the networks then choose an attention that holds no scores, as
        # those of GPUs do, and that can be looked into without a GPU.
        device = jax.sharding.AbstractDevice(device_kind="TPU", num_cores=1, platform="tpu")
        types = (AxisType.Auto,) * len(AXES)
        return AbstractMesh(shape.sizes(self.chips), AXES, types, abstract_device=device)

    def mesh(self, shape: MeshShape) -> Mesh:
        """A mesh of devices that can be compiled for.

        InputError where its sizes do not fit the chips, or libtpu knows no such slice. The process
        must have been started with `environment`.
        """
        from jax.experimental import topologies

        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=self.text)
        except Exception as error:  # of several types, by version
            reason = str(error).splitlines()[0]
            raise InputError(f"--topology {self.text}: there is no such slice: {reason}") from error
        return shape.build(found.devices)
