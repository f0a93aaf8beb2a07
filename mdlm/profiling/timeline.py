"""Reads a trace of the profiler: when each instruction ran, and to which part it belongs.

The compiler names every instruction of a program. The trace contains when each ran; the program's
text contains its named scopes (`op_name="jit(train_step)/.../attention/dot_general"`), so the two
together give time by part of the model. Times are nanoseconds of the trace's clock.

Instructions may run at the same time (threads, streams). They then share the time equally, so the
shares of all instructions add up to the time in which any of them ran.
"""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from mdlm.names import PARTS
from mdlm.profiling import hlo

SCAN, OTHER = "scan", "other"
"""Parts for a loop's own data movement (layers, micro-batches), and for all without a scope."""
FORWARD, BACKWARD, RECOMPUTED = DIRECTIONS = "forward", "backward", "recomputed"
CONTAINERS = {"while", "conditional", "call", "async-start", "async-done"}
PRODUCTS = {"dot", "convolution"}
# Custom calls with matmuls: cuBLAS, oneDNN, cuDNN's fused attention.
LIBRARY_PRODUCT = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul|fmha|\$dot)[^"]*"', re.I)


@dataclass(frozen=True)
class Instruction:
    """The part of the model that an instruction comes from.

    `is_product`: it is, or contains, a matmul. `is_container`: its events enclose those of the
    instructions that it calls, which are counted separately.
    """

    opcode: str
    part: str
    direction: str
    is_product: bool
    is_container: bool


@dataclass(frozen=True)
class Event:
    """One run of one instruction on one device. `run` is the id of the program's run, if known."""

    device: str
    module: str | None
    instruction: str
    start: float
    end: float
    run: int | None = None


def origin(op_name: str) -> tuple[str, str]:
    """Returns part and direction from the scopes in an `op_name`, by the innermost known part."""
    words = re.split(r"[/()]", op_name)
    unnamed = SCAN if "while/body" in op_name else OTHER
    part = next((word for word in reversed(words) if word in PARTS), unnamed)
    if "rematted_computation" in words:
        return part, RECOMPUTED
    return part, BACKWARD if "transpose" in words[:-1] else FORWARD


def instructions(text: str) -> dict[str, Instruction]:
    """Returns the instructions of a compiled program, by name, from its text."""
    computations, _, _ = hlo.parsed(text)
    lines = {name: line for body in computations.values() for name, line in body.items()}
    own = {name: origin(line.op_name) for name, line in lines.items() if line.op_name is not None}

    def inner(name: str) -> list[str]:
        return list(computations.get(lines[name].fused or "", ()))

    def multiplies(name: str) -> bool:
        line = lines[name]
        return line.opcode in PRODUCTS or bool(LIBRARY_PRODUCT.search(line.rest))

    def attributed(name: str, depth: int) -> tuple[str, str]:
        """Returns, for a fusion, the origin of its matmul, else its own, else the commonest inside
        it, else that of its operands."""
        fused = inner(name)
        for candidate in [n for n in fused if multiplies(n)] + [name]:
            if own.get(candidate, (OTHER,))[0] != OTHER:
                return own[candidate]
        votes = Counter(own[n] for n in fused if own.get(n, (OTHER,))[0] != OTHER)
        if votes:
            return votes.most_common(1)[0][0]
        # A copy that the compiler inserted belongs to the producer of its operand.
        if depth and lines[name].opcode not in CONTAINERS:
            for operand in lines[name].operands:
                if operand in lines and (at := attributed(operand, depth - 1))[0] != OTHER:
                    return at
        return own.get(name, (OTHER, FORWARD))

    return {
        name: Instruction(
            line.opcode,
            *attributed(name, depth=3),
            is_product=any(multiplies(n) for n in [name, *inner(name)]),
            # XLA:CPU runs small calls as one event, without events for their instructions.
            is_container=line.opcode in CONTAINERS and "xla_cpu_small_call" not in line.rest,
        )
        for name, line in lines.items()
    }


def events(data: Any) -> list[Event]:
    """Returns the runs of instructions in a `jax.profiler.ProfileData`, on any platform."""
    planes = list(data.planes)
    devices = [p for p in planes if p.name.startswith(("/device:GPU:", "/device:TPU:"))]
    if not devices:
        return [event for plane in planes for event in _on_threads(plane)]
    return [event for plane in devices for event in _on_device(plane)]


def _on_threads(plane: Any) -> Iterable[Event]:
    """Yields the events of a CPU. Another thread may end an instruction; an event marks that."""
    began, ended = [], {}
    for line in plane.lines:
        for event in line.events:
            if event.name.startswith("end: "):
                ended[dict(event.stats).get("_c")] = event.start_ns
            elif not event.name.startswith(("Threadpool", "Thunk", "$")):
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    began.append((event.start_ns, event.end_ns, stats))
    for start, end, stats in began:
        yield Event(
            device=f"{plane.name} {stats.get('device_ordinal', 0)}",
            module=stats.get("hlo_module"),
            instruction=stats["hlo_op"],
            start=start,
            end=max(end, ended.get(stats.get("_p"), end)),
            run=stats.get("run_id"),
        )


def _on_device(plane: Any) -> Iterable[Event]:
    """Yields the events of a GPU (its lines are streams) or of a TPU (one line, "XLA Ops")."""
    lines = {line.name: line for line in plane.lines}
    modules = sorted(
        (event.start_ns, event.end_ns, event.name.partition("(")[0])
        for event in (lines["XLA Modules"].events if "XLA Modules" in lines else ())
    )
    streams = [line for name, line in lines.items() if name.startswith("Stream")]
    for line in streams or [line for name, line in lines.items() if name == "XLA Ops"]:
        for event in line.events:
            stats = dict(event.stats)
            at = bisect_right(modules, (event.start_ns, float("inf"), "")) - 1
            inside = at >= 0 and event.start_ns < modules[at][1]
            yield Event(
                device=plane.name,
                module=stats.get("hlo_module") or (modules[at][2] if inside else None),
                # The name of a TPU's event is the whole text of the instruction.
                instruction=stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%"),
                start=event.start_ns,
                end=event.end_ns,
            )


def runs(of_module: list[Event], count: int) -> list[tuple[float, float]]:
    """Returns first start and last end of each run of a program on one device, in order.

    If the trace has no run ids, a run starts at each event of the first instruction; if that does
    not give `count` runs, all events are one run.
    """
    of_module = sorted(of_module, key=lambda e: e.start)
    groups: dict[Hashable, list[Event]] = defaultdict(list)
    first, number = of_module[0].instruction, 0
    for event in of_module:
        number += event.instruction == first
        groups[number if event.run is None else event.run].append(event)
    if len(groups) != count and of_module[0].run is None:
        groups = {0: of_module}
    return sorted((min(e.start for e in g), max(e.end for e in g)) for g in groups.values())


def shares(spans: list[tuple[float, float, Any]]) -> dict[Any, float]:
    """Returns time by key of `(start, end, key)`; spans that overlap share the time equally."""
    edges = [(end, -1, key) for start, end, key in spans if end > start]
    edges += [(start, 1, key) for start, end, key in spans if end > start]
    edges.sort(key=lambda edge: edge[:2])
    total: dict[Any, float] = defaultdict(float)
    active: Counter = Counter()
    running, before = 0, 0.0
    for time, change, key in edges:
        if running and time > before:
            for other, times in active.items():
                total[other] += (time - before) * times / running
        active[key] += change
        running += change
        if not active[key]:
            del active[key]
        before = time
    return dict(total)
