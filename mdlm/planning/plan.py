"""Memory, time, traffic and cost of a run on hardware that need not be present.

The training step is traced and compiled for the named devices (`mdlm.planning.compiling`). For
devices without a compiler here, memory is estimated from the residuals that JAX saves for the
backward pass. No text is read. Only one value is computed: the fraction of the tokens that get
logits, on a few rows of random tokens.

    seconds per step  >=  3 * (operations of a forward pass) / (chips * peak)
"""

import math
from dataclasses import dataclass
from typing import Any

from mdlm.experiment.model import Model
from mdlm.models.layers import compute_dtype
from mdlm.models.network import count_parameters
from mdlm.parallel.mesh import AXES, check_batch, on
from mdlm.planning.compiling import Compiled
from mdlm.planning.memory import (
    estimated_temporaries,
    given_bytes,
    scored_share,
    shapes,
)
from mdlm.planning.topology import Topology
from mdlm.profiling.collectives import Traffic, sent

DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device during a step.

    `average` is the EMA of the parameters. `other` is the batch and the padding of arrays.
    `temporaries` are gradients, activations and all other arrays that live within one step.
    """

    parameters: float
    optimizer: float
    average: float
    other: float
    temporaries: float
    program: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The predicted memory, time and cost of a run.

    `method` is "compiled", "extrapolated from ..." or "estimated". `columns` is the vocabulary
    size, `scored` the fraction of positions with logits, `flops` those of a step, `peak` and
    `link` those of one chip, `available` its memory in bytes, `price` dollars per chip-hour.
    """

    experiment: str
    topology: str
    chip: str
    chips: int
    mesh: dict[str, int]
    method: str
    compile_seconds: float | None
    refused: str | None
    parameters: int
    columns: int
    columns_from: str
    batch_size: int
    accumulate: int
    length: int
    steps: int
    scored: float
    memory: Memory
    gradients: float
    available: float
    flops: float
    peak: float
    mfu: float
    traffic: dict[str, Traffic] | None
    link: float
    price: float | None

    @property
    def fits(self) -> bool:
        return self.refused is None and self.memory.total <= self.available

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.length

    def seconds(self, mfu: float) -> float:
        """Returns the seconds of a step at the given MFU."""
        return self.flops / (self.chips * self.peak * mfu)

    @property
    def sent(self) -> float | None:
        """Approximate bytes that each device sends in a step; None if the traffic is unknown."""
        return None if self.traffic is None else sent(self.traffic)

    @property
    def sending(self) -> float | None:
        """Least seconds of a step in which a device's links are busy; None if unknown."""
        return None if self.sent is None else self.sent / self.link

    @property
    def run_seconds(self) -> float:
        """Seconds of the whole run at the assumed MFU."""
        return self.steps * self.seconds(self.mfu)

    @property
    def days(self) -> float:
        return self.run_seconds / DAY

    @property
    def dollars(self) -> float | None:
        return None if self.price is None else self.days * 24 * self.chips * self.price

    def as_json(self) -> dict[str, Any]:
        """Returns all values for JSON, in bytes, seconds and FLOPs."""
        memory = {**vars(self.memory), "gradients": self.gradients, "total": self.memory.total}
        traffic = self.traffic and {kind: vars(t) for kind, t in self.traffic.items()}
        return {
            **vars(self),
            "memory": memory,
            "traffic": traffic,
            "fits": self.fits,
            "tokens_per_step": self.tokens_per_step,
            "step_seconds_at_peak": self.seconds(1.0),
            "step_seconds": self.seconds(self.mfu),
            "tokens_per_second": self.tokens_per_step / self.seconds(self.mfu),
            "sent": self.sent,
            "sending_seconds": self.sending,
            "run_seconds": self.run_seconds,
            "days": self.days,
            "dollars": self.dollars,
        }


def memory_of(
    model: Model, topology: Topology, compiled: Compiled | None, on_smaller: Topology | None
) -> tuple[str, Memory, float]:
    """Returns the method of a plan, the memory of a device, and the bytes of one gradient.

    The arguments are those of `plan`.
    """
    e = model.experiment
    mesh = topology.sizes(e.mesh)
    given, gradients = given_bytes(model, mesh)
    if compiled is None:
        method, temporaries = "estimated", estimated_temporaries(model, mesh)
    elif on_smaller is None:
        method, temporaries = "compiled", compiled.temporaries
        if compiled.arguments is not None:
            # The compiler pads arrays.
            given["other"] += compiled.arguments - sum(given.values())
    else:
        method, temporaries = f"extrapolated from {on_smaller.text}", compiled.temporaries
        if temporaries is not None:
            # On more devices the gradients are split further; all other temporaries are equal.
            smaller = given_bytes(model, on_smaller.sizes(e.mesh))[1]
            temporaries += gradients - smaller
    memory = Memory(
        **given,
        temporaries=math.nan if temporaries is None else temporaries,
        program=compiled.program if compiled else 0.0,
    )
    return method, memory, gradients


def peak_of(model: Model, topology: Topology) -> float:
    """Returns the peak FLOP/s of one chip, in the dtype in which the network computes there."""
    e = model.experiment
    with on(topology.sizes(e.mesh)):
        dtype = compute_dtype(e.network.dtype)
    return topology.peak(str(dtype))


def step_flops(model: Model, scored: float) -> float:
    """Returns the FLOPs of a step, `scored` of whose positions have logits."""
    e = model.experiment
    rows, length = e.train.batch_size, e.data.packing.length
    return 3 * e.network.flops(rows, length, scored * rows * length, model.columns)


def plan(
    model: Model,
    topology: Topology,
    compiled: Compiled | None,
    *,
    on_smaller: Topology | None = None,
    columns_from: str = "given",
    mfu: float = 0.4,
    price: float | None = None,
) -> Plan:
    """Returns the plan of a model on a topology.

    Args:
        compiled: the result of compiling for it; None for an estimate.
        on_smaller: a smaller topology with as many rows per device, if `compiled` is for that one.
        columns_from: the source of the vocabulary size, for the printed plan.
        mfu: the assumed MFU, a fraction of the peak.
        price: dollars per chip-hour.
    """
    e, mesh = model.experiment, topology.sizes(model.experiment.mesh)
    check_batch(mesh, e.train.batch_size, e.train.accumulate, e.objective.rows_together)
    method, memory, gradients = memory_of(model, topology, compiled, on_smaller)
    scored = scored_share(model)
    return Plan(
        experiment=e.name,
        topology=topology.text,
        chip=topology.chip.kind,
        chips=topology.chips,
        mesh={axis: mesh.shape[axis] for axis in AXES},
        method=method,
        compile_seconds=compiled.seconds if compiled else None,
        refused=compiled.refused if compiled else None,
        parameters=count_parameters(shapes(model)),
        columns=model.columns,
        columns_from=columns_from,
        batch_size=e.train.batch_size,
        accumulate=e.train.accumulate,
        length=e.data.packing.length,
        steps=e.train.steps,
        scored=scored,
        memory=memory,
        gradients=gradients,
        available=topology.chip.memory,
        flops=step_flops(model, scored),
        peak=peak_of(model, topology),
        mfu=mfu,
        traffic=compiled.traffic if compiled else None,
        link=topology.chip.link,
        price=price,
    )
