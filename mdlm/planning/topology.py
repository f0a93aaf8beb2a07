"""Hardware by name, which need not be present: `v5e:4x4`, `v5p:2x2x4`, `gpu:8xH100`.

The TPU compiler is a part of the `libtpu` wheel and needs no TPU. JAX gets the devices of a slice
from it by name, and compiles for a mesh over them as usual (`jax.experimental.topologies`). GPUs
have no such compiler. Nor has TPU v4 here, as JAX shows each of its chips as two devices. Both have
an abstract mesh, which is enough for shardings.
"""

import importlib.util
import math
import re
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from mdlm.errors import InputError
from mdlm.parallel.mesh import AXES, MeshShape
from mdlm.profiling.peak import CHIPS, Chip, datasheet

SHAPES = {"v4": "4x4x4", "v5e": "4x4", "v5p": "2x2x4", "v6e": "8x8"}
"""An example of a slice of each TPU generation."""
GPUS = tuple(name for name in CHIPS if name not in SHAPES)
ACCELERATORS = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
"""The name of a slice in libtpu: this prefix, and the number of chips times this factor."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A number of chips of one kind.

    `name` is a key of `CHIPS` or what the user called a GPU, `text` is what the user gave. `flops`
    is the peak of one chip in FLOP/s if it is not that of the datasheet.
    """

    text: str
    name: str
    chips: int
    chip: Chip
    flops: float | None = None

    @classmethod
    def parse(
        cls, text: str, *, memory: float | None = None, flops: float | None = None
    ) -> "Topology":
        """Parses `v5e:4x4` or `gpu:8xH100`; with both figures, GPUs of any name.

        Args:
            memory: bytes of one GPU, instead of the listed ones.
            flops: FLOP/s of one GPU at its dense peak, instead of the datasheet's.

        Raises InputError if `text` has neither form, the chip is unknown, or a figure is given for
        a TPU.
        """
        name, _, shape = text.partition(":")
        if name in SHAPES and (memory or flops):
            raise InputError(
                f"--topology {text}: --device-memory and --device-tflops are for GPUs; the figures"
                " of TPUs are known"
            )
        if name in SHAPES and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
            chips = math.prod(int(n) for n in shape.split("x"))
            if len(shape.split("x")) == len(SHAPES[name].split("x")):
                return cls(text=text, name=name, chips=chips, chip=CHIPS[name])
        gpus = re.fullmatch(r"([1-9]\d*)x(\w+)", shape)
        if name == "gpu" and gpus and gpus[2] not in SHAPES:
            name, chip = gpus[2], CHIPS.get(gpus[2])
            if chip is None and memory and flops:
                chip = Chip(name, memory, math.nan, None, 0, "given by the user")
            if chip is not None:
                chip = chip._replace(memory=memory or chip.memory)
                return cls(text=text, name=name, chips=int(gpus[1]), chip=chip, flops=flops)
        slices = ", ".join(f"{name}:{shape}" for name, shape in SHAPES.items())
        raise InputError(
            f"--topology {text}: unknown; must be a TPU slice like {slices} (chips along each "
            f"axis), or GPUs like gpu:8xH100, one of {', '.join(GPUS)}, or of another name with "
            "--device-memory GIB and --device-tflops TFLOPS"
        )

    def peak(self, dtype: str) -> float:
        """Returns the FLOP/s of one chip at its dense peak, for operands of `dtype`."""
        flops = self.flops or datasheet(self.chip.kind, dtype).flops
        assert flops is not None, self.chip.kind
        return flops

    @property
    def is_tpu(self) -> bool:
        return self.name in SHAPES

    @property
    def is_compiled_for(self) -> bool:
        """Whether libtpu can compile for it without the hardware."""
        return self.is_tpu and self.name != "v4"

    def check_compiler(self) -> None:
        """Raises InputError if libtpu is not installed."""
        if importlib.util.find_spec("libtpu") is None:
            raise InputError(
                f"--topology {self.text}: needs the TPU compiler: pip install 'jax[tpu]'"
            )

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that libtpu reads when JAX is imported."""
        kind, cores = ACCELERATORS[self.name]
        return {
            "JAX_PLATFORMS": "cpu",
            # Otherwise libtpu queries a server that exists only on machines with TPUs.
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": f"{kind}-{cores * self.chips}",
            "TPU_WORKER_HOSTNAMES": "localhost",
            # One process at a time may use a TPU; compiling uses none.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }

    def sizes(self, shape: MeshShape) -> AbstractMesh:
        """Returns a mesh without devices, for which code chooses what it would on such devices.

        Raises InputError if its sizes do not fit the number of chips.
        """
        device = jax.sharding.AbstractDevice(
            device_kind=self.chip.kind,
            num_cores=1 if self.is_tpu else None,
            platform="tpu" if self.is_tpu else "gpu",
        )
        types = (AxisType.Auto,) * len(AXES)
        return AbstractMesh(shape.sizes(self.chips), AXES, types, abstract_device=device)

    def mesh(self, shape: MeshShape) -> Mesh:
        """Returns a mesh of devices to compile for.

        Raises InputError if its sizes do not fit the number of chips, or libtpu has no such slice.
        The process must have been started with `environment`.
        """
        from jax.experimental import topologies

        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=self.text)
        except Exception as error:  # of several types, by version
            reason = str(error).splitlines()[0]
            raise InputError(f"--topology {self.text}: there is no such slice: {reason}") from error
        return shape.build(found.devices)
