"""What a run would take on hardware that is not here: memory, time, traffic, money.

The step is the one that would be trained, traced and compiled for the devices that are named; for
those that nothing here compiles for, memory is estimated from what JAX keeps for the backward
pass. No text is read and nothing is computed, but the share of the tokens whose logits are made,
on a few rows of made-up tokens.

    seconds per step  >=  3 * (operations of a forward pass) / (chips * peak)
"""

import math
import re
import time
from dataclasses import dataclass, replace
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
from mdlm.planning.topology import SHAPES, Topology
from mdlm.profiling.collectives import Traffic, collectives, sent
from mdlm.profiling.peak import datasheet
from mdlm.train.step import abstract_state, compile_step

DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device during a step.

    `other` is what else is handed to the step: the batch, and what arrays are padded by;
    `temporaries` are gradients, activations and all else that is made and dropped within a step.
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
    """What the compiler said. Where a step did not fit, `temporaries` is what it wanted for them,
    None if it did not say, and `refused` is its message; `seconds` is what compiling took."""

    seconds: float
    arguments: float | None = None
    temporaries: float | None = None
    program: float = 0.0
    traffic: dict[str, Traffic] | None = None
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on paper. `method` is "compiled", "extrapolated from ..." or "estimated"."""

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
        """Of a step, at that share of the peak."""
        return self.flops / (self.chips * self.peak * mfu)

    @property
    def sent(self) -> float | None:
        """Bytes that each device sends in a step, about."""
        return None if self.traffic is None else sent(self.traffic)

    @property
    def sending(self) -> float | None:
        """Seconds of a step in which a device's links are busy, at least."""
        return None if self.sent is None else self.sent / self.link

    @property
    def days(self) -> float:
        return self.steps * self.seconds(self.mfu) / DAY

    @property
    def dollars(self) -> float | None:
        return None if self.price is None else self.days * 24 * self.chips * self.price

    def as_json(self) -> dict[str, Any]:
        """Everything, in bytes, seconds and operations."""
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
            "days": self.days,
            "dollars": self.dollars,
        }


def as_there(model: Model, topology: Topology) -> Model:
    """The model as GPUs train it, where nothing else is said: all is kept for the backward pass.

    Networks choose by the platform, and to them a mesh of GPUs is one of TPUs (`Topology.sizes`).
    """
    network = model.experiment.network
    if topology.name in SHAPES or network.remat != "auto":
        return model
    network = replace(network, remat="none")
    return Model(replace(model.experiment, network=network), model.vocab, model.counts)


def memory_of(
    model: Model, topology: Topology, compiled: Compiled | None, on_smaller: Topology | None
) -> tuple[str, Memory, float]:
    """How the memory of a device is known, what it is, and the bytes of one gradient.

    The arguments are those of `plan`.
    """
    e = model.experiment
    mesh = topology.sizes(e.mesh)
    given, gradients = given_bytes(model, mesh)
    if compiled is None:
        method, temporaries = "estimated", estimated_temporaries(as_there(model, topology), mesh)
    elif on_smaller is None:
        method, temporaries = "compiled", compiled.temporaries
        if compiled.arguments is not None:
            # Arrays are padded there.
            given["other"] += compiled.arguments - sum(given.values())
    else:
        method, temporaries = f"extrapolated from {on_smaller.text}", compiled.temporaries
        if temporaries is not None:
            # Gradients are in smaller parts on more devices, all else as large.
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
    """The plan of a model on a topology.

    Args:
        compiled: what compiling for it said; None for an estimate.
        on_smaller: where that was said of this topology instead, each of whose devices had as
            many rows.
        columns_from: how the size of the vocabulary is known.
        mfu: share of the peak that is hoped for.
        price: dollars per chip-hour.
    """
    e = model.experiment
    mesh = topology.sizes(e.mesh)
    check_batch(mesh, e.train.batch_size, e.train.accumulate)
    method, memory, gradients = memory_of(model, topology, compiled, on_smaller)
    with on(mesh):
        dtype = compute_dtype(e.network.dtype)
    peak = datasheet(topology.chip.kind, str(dtype)).flops
    assert peak is not None, topology.chip.kind
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
        peak=peak,
        mfu=mfu,
        traffic=compiled.traffic if compiled else None,
        link=topology.chip.link,
        price=price,
    )


def compile_for(model: Model, mesh: Mesh) -> Compiled:
    """Compiles the training step for a mesh of devices, which need not be here."""
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
    """The collectives of a compiled program; None where this jaxlib cannot read what a libtpu of
    another release has written."""
    try:
        return collectives(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        if "RET_CHECK" not in str(error):
            raise
        return None


def first(message: str) -> str:
    """The first line of an error of XLA, without its codes."""
    return re.sub(r"^[A-Z_]+: (E\d+: )?(\w+: )?", "", message.strip().splitlines()[0])


def wanted(message: str) -> float | None:
    """Bytes of temporaries that did not fit, from XLA's message; None if it does not say."""
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else None
