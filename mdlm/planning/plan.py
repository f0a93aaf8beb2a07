"""Memory, time, traffic and cost of a run on hardware that need not be present.

The training step is traced and compiled for the named devices. For devices without a compiler here,
memory is estimated from the residuals that JAX saves for the backward pass. No text is read. Only
one value is computed: the fraction of the tokens that get logits, on a few rows of random tokens.

    seconds per step  >=  3 * (operations of a forward pass) / (chips * peak)
"""

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from mdlm.experiment.model import Model
from mdlm.models.layers import compute_dtype
from mdlm.models.network import count_parameters
from mdlm.parallel.mesh import AXES, check_batch, on
from mdlm.planning.memory import (
    abstract_batch,
    estimated_temporaries,
    given_bytes,
    scored_share,
    shapes,
)
from mdlm.planning.topology import Topology
from mdlm.profiling.collectives import Traffic, collectives, sent
from mdlm.train.step import abstract_state, compile_step

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
class Compiled:
    """The compiler's result. `seconds` is the compile time. If a step does not fit, `refused` is
    the compiler's message, and `temporaries` the size in it, None if it contains none."""

    seconds: float
    arguments: float | None = None
    temporaries: float | None = None
    program: float = 0.0
    traffic: dict[str, Traffic] | None = None
    refused: str | None = None


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
    e = model.experiment
    mesh = topology.sizes(e.mesh)
    check_batch(mesh, e.train.batch_size, e.train.accumulate)
    method, memory, gradients = memory_of(model, topology, compiled, on_smaller)
    with on(mesh):
        dtype = compute_dtype(e.network.dtype)
    scored = scored_share(model)
    rows, length = e.train.batch_size, e.data.packing.length
    forward = e.network.flops(rows, length, scored * rows * length, model.vocab_size)
    return Plan(
        experiment=e.name,
        topology=topology.text,
        chip=topology.chip.kind,
        chips=topology.chips,
        mesh={axis: mesh.shape[axis] for axis in AXES},
        method=method,
        compile_seconds=compiled.seconds if compiled else None,
        refused=compiled.refused if compiled else None,
        parameters=count_parameters(shapes(model)["params"]),
        columns=model.vocab_size,
        columns_from=columns_from,
        batch_size=rows,
        accumulate=e.train.accumulate,
        length=length,
        steps=e.train.steps,
        scored=scored,
        memory=memory,
        gradients=gradients,
        available=topology.chip.memory,
        flops=3 * forward,
        peak=topology.peak(str(dtype)),
        mfu=mfu,
        traffic=compiled.traffic if compiled else None,
        link=topology.chip.link,
        price=price,
    )


def compile_for(model: Model, mesh: Mesh) -> Compiled:
    """Compiles the training step for a mesh of devices, which need not be present."""
    e = model.experiment
    tx = e.optimizer.build(e.train.steps)
    state, batch = abstract_state(model, tx, mesh), abstract_batch(model, mesh)
    lowered = compile_step(model, tx, mesh).lower(state, batch)
    since = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - since
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(seconds=seconds, temporaries=wanted(str(error)), refused=first(str(error)))
    seconds = time.perf_counter() - since
    found: Any = compiled.memory_analysis()
    given_back = found.output_size_in_bytes - found.alias_size_in_bytes
    return Compiled(
        seconds=seconds,
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes + given_back,
        program=found.generated_code_size_in_bytes,
        traffic=traffic_of(compiled),
    )


def traffic_of(compiled: Any) -> dict[str, Traffic] | None:
    """Returns the collectives of a compiled program; None if this jaxlib cannot read the output of
    a libtpu of another release."""
    try:
        return collectives(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        if "RET_CHECK" not in str(error):
            raise
        return None


def first(message: str) -> str:
    """Returns the first line of an error message of XLA, without its codes."""
    return re.sub(r"^[A-Z_]+: (E\d+: )?(\w+: )?", "", message.strip().splitlines()[0])


def wanted(message: str) -> float | None:
    """Returns the bytes of temporaries from XLA's out-of-memory message, None if it has none."""
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else None
