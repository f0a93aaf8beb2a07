"""The training step compiled for devices that need not be present: its memory and its traffic."""

import re
import time
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from mdlm.experiment.model import Model
from mdlm.planning.memory import abstract_batch
from mdlm.profiling.collectives import Traffic, collectives
from mdlm.train.step import abstract_state, compile_step


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


def compile_for(model: Model, mesh: Mesh) -> Compiled:
    """Compiles the training step for a mesh of devices, which need not be present."""
    e = model.experiment
    tx = e.updates()
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
