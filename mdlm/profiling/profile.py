"""A few steps of a run under the profiler, and where their time went.

`Profiler` is told of each step by the training loop. It lets the first steps pass, which compile,
traces the next ones, and reads the trace in this process. The result stands in the run folder:

profile/plugins/...     the trace, for XProf, TensorBoard or Perfetto
profile/profile.txt     time by part of the step, as printed
profile/profile.json    the same as numbers, and every instruction
"""

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from mdlm.errors import InputError
from mdlm.profiling import timeline
from mdlm.profiling.timeline import Event, Instruction

WARM_UP = 3
"""Steps of a session before the first that is traced."""
SLOWEST = 8
"""Instructions that the printed table names."""
UNKNOWN = Instruction("", timeline.OTHER, timeline.FORWARD, is_product=False, is_container=False)
"""Of what the program's text does not name: what a GPU copies, the kernels of a captured graph."""
MS = 1e-6
"""Milliseconds in a nanosecond."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one instruction took: milliseconds per step and device, and runs per step."""

    name: str
    opcode: str
    part: str
    direction: str
    is_product: bool
    ms: float
    runs: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of traced steps went, in milliseconds per step, a mean over devices.

    Args:
        steps: how many were traced.
        devices: devices in the trace.
        step: from the first instruction of a step to the end of its last.
        idle: of that, time in which no instruction ran.
        between: from the end of a step to the start of the next. Where another program ran there
            (a validation, say), it is not counted; None where that leaves nothing.
        instructions: those of the step, the slowest first; with `idle` they add up to `step`.
    """

    steps: int
    devices: int
    step: float
    idle: float
    between: float | None
    instructions: tuple[Cost, ...]

    def parts(self) -> dict[str, dict[str, float]]:
        """Milliseconds by part, then by direction; the slowest part first."""
        table: dict[str, dict[str, float]] = defaultdict(
            lambda: dict.fromkeys(timeline.DIRECTIONS, 0.0)
        )
        for cost in self.instructions:
            table[cost.part][cost.direction] += cost.ms
        return dict(sorted(table.items(), key=lambda item: -sum(item[1].values())))

    def products(self) -> dict[str, float]:
        """Of each part, milliseconds in matrix products (and what is fused with them)."""
        table: dict[str, float] = defaultdict(float)
        for cost in self.instructions:
            table[cost.part] += cost.ms * cost.is_product
        return dict(table)

    def to_json(self) -> str:
        """All of it, `parts` and `products` included."""
        return json.dumps({**asdict(self), "parts": self.parts(), "products": self.products()})

    def __str__(self) -> str:
        whole = self.step + (self.between or 0.0)

        def row(name: str, ms: float, cells: tuple[float | None, ...] = ()) -> str:
            shown = "".join("" if c is None else f"{c:12.2f}" if c else " " * 12 for c in cells)
            return f"{name:22}{ms:10.2f}{ms / whole:8.1%}{shown}"

        products = self.products()
        lines = [
            f"{whole:.2f} ms per step, {self.steps} steps traced, {self.devices} device(s)",
            f"{'part':22}{'ms/step':>10}{'share':>8}"
            + "".join(f"{name:>12}" for name in ("products", *timeline.DIRECTIONS)),
        ]
        for part, times in self.parts().items():
            lines.append(row(part, sum(times.values()), (products[part], *times.values())))
        lines.append(row("idle within the step", self.idle))
        if self.between is not None:
            lines.append(row("between the steps", self.between))
        total = sum(products.values())
        lines += [
            row("all", whole, (total,)),
            "",
            "Time in which several instructions ran is shared equally among them. products: matrix",
            "products and what is fused with them. Gradients made in the forward pass count there.",
            "",
            f"{'slowest instructions':44}{'ms/step':>10}{'runs':>8}  part",
        ]
        lines += [
            f"{c.name[:43]:44}{c.ms:10.2f}{c.runs:8.1f}  {c.part}, {c.direction}"
            + (", product" if c.is_product else "")
            for c in self.instructions[:SLOWEST]
        ]
        return "\n".join(lines)


def read(
    events: list[Event], module: str, instructions: dict[str, Instruction], steps: int
) -> Profile:
    """The profile of a program's runs among a trace's events. ValueError where it has none."""
    devices = sorted({event.device for event in events if event.module == module})
    if not devices:
        raise ValueError(f"the trace has no run of {module} (of {len(events)} events)")
    ms: dict[str, float] = defaultdict(float)
    count: Counter = Counter()
    step = idle = 0.0
    between: list[float] = []
    for device in devices:
        here = [event for event in events if event.device == device]
        # What a trace does not name (the kernels of a captured graph) is taken for the step's.
        ours = [event for event in here if event.module in (module, None)]
        spans = timeline.runs([e for e in here if e.module == module], steps)
        leaves = [e for e in ours if not instructions.get(e.instruction, UNKNOWN).is_container]
        found = timeline.shares([(e.start, e.end, e.instruction) for e in leaves])
        for name, time in found.items():
            ms[name] += time * MS / steps
        count.update(event.instruction for event in leaves)
        inside = sum(end - start for start, end in spans)
        step += inside * MS / steps
        idle += max(0.0, inside - sum(found.values())) * MS / steps
        others = [e for e in here if e.module not in (module, None)]
        for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
            if not any(e.start < start and e.end > end for e in others):
                between.append(max(0.0, start - end) * MS)
    n = len(devices)
    costs = []
    for name, time in ms.items():
        found = instructions.get(name, UNKNOWN)
        cost = Cost(
            name=name,
            opcode=found.opcode,
            part=found.part,
            direction=found.direction,
            is_product=found.is_product,
            ms=time / n,
            runs=count[name] / (n * steps),
        )
        costs.append(cost)
    return Profile(
        steps=steps,
        devices=n,
        step=step / n,
        idle=idle / n,
        between=sum(between) / len(between) if between else None,
        instructions=tuple(sorted(costs, key=lambda cost: -cost.ms)),
    )


def check(steps: int, left: int) -> None:
    """InputError unless so many steps can be traced in a session that has `left` to go."""
    if steps < 1:
        raise InputError(f"--profile {steps}: at least one step is needed")
    if steps + WARM_UP > left:
        raise InputError(
            f"--profile {steps}: {left} steps are left, of which the first {WARM_UP} are not traced"
        )


class Profiler:
    """Traces `steps` steps of a session that begins at step `begin`; 0 traces none.

    Of several processes the one that `writes` traces; the others compile what it compiles.
    """

    def __init__(self, folder: Path, steps: int, begin: int, writes: bool = True):
        self.folder, self.steps, self.writes = folder / "profile", steps, writes
        self.first = begin + WARM_UP if steps else -1
        self.compiled: Any = None

    def before(self, step: int, train_step: Any, state: Any, batch: Any) -> None:
        """To be told that `step` steps are done and the next one follows."""
        if step != self.first or self.compiled is not None:  # a run may come by a step twice
            return
        # The text of the very program that runs: JAX has it compiled already.
        self.compiled = train_step.lower(state, batch).compile()
        jax.block_until_ready(state)
        if not self.writes:
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it would slow the very host that is looked at
        jax.profiler.start_trace(self.folder, profiler_options=options)

    def after(self, step: int, state: Any) -> Profile | None:
        """To be told that `step` steps are done: the profile, once the last one is traced."""
        if self.compiled is None or step != self.first + self.steps:
            return None
        jax.block_until_ready(state)
        text = self.compiled.as_text()
        self.close()
        if not self.writes:
            return None
        written = sorted(self.folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        data = jax.profiler.ProfileData.from_file(str(written[-1]))
        module = text.partition("HloModule ")[2].partition(",")[0]
        found = read(timeline.events(data), module, timeline.instructions(text), self.steps)
        (self.folder / "profile.txt").write_text(f"{found}\n")
        (self.folder / "profile.json").write_text(found.to_json() + "\n")
        return found

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self.compiled is not None:
            if self.writes:
                jax.profiler.stop_trace()
            self.compiled = None
