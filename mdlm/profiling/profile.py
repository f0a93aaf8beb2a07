"""Profiles a few steps of a run: the time by part of the model.

The training loop calls `Profiler` at each step. It skips the first steps, which compile, traces the
next ones, and reads the trace in this process. It writes to the run folder:

profile/plugins/...     the trace, for XProf, TensorBoard or Perfetto
profile/profile.txt     time by part of the step, as printed
profile/profile.json    the same as numbers, and every instruction
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import jax

from mdlm.errors import InputError
from mdlm.files import write
from mdlm.profiling import timeline
from mdlm.profiling.timeline import Event, Instruction

T = TypeVar("T")

WARM_UP = 3
"""Steps before the first one that is traced, counted from the start or resume of a run."""
SLOWEST = 8
"""Number of instructions in the printed table."""
UNKNOWN = Instruction("", timeline.OTHER, timeline.FORWARD, is_product=False, is_container=False)
"""Stands for events that the program's text does not name: copies on a GPU, captured graphs."""
MS = 1e-6
"""Milliseconds in a nanosecond."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The time of one instruction: milliseconds per step and device, and runs per step."""

    name: str
    opcode: str
    part: str
    direction: str
    is_product: bool
    ms: float
    runs: float

    @classmethod
    def of(cls, name: str, found: Instruction, ms: float, runs: float) -> "Cost":
        """The cost of an instruction of that name."""
        return cls(
            name=name,
            opcode=found.opcode,
            part=found.part,
            direction=found.direction,
            is_product=found.is_product,
            ms=ms,
            runs=runs,
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The time of the traced steps, in milliseconds per step, as the mean over devices.

    Args:
        steps: number of traced steps.
        devices: number of devices in the trace.
        step: time from the start of the first instruction of a step to the end of its last.
        idle: the part of `step` in which no instruction ran.
        between: time from the end of a step to the start of the next. Gaps in which another program
            ran (a validation, say) are left out; None if no gap remains.
        instructions: those of the step, slowest first; with `idle` they add up to `step`.
    """

    steps: int
    devices: int
    step: float
    idle: float
    between: float | None
    instructions: tuple[Cost, ...]

    def parts(self) -> dict[str, dict[str, float]]:
        """Returns milliseconds by part, then by direction; the slowest part first."""
        table: dict[str, dict[str, float]] = defaultdict(
            lambda: dict.fromkeys(timeline.DIRECTIONS, 0.0)
        )
        for cost in self.instructions:
            table[cost.part][cost.direction] += cost.ms
        return dict(sorted(table.items(), key=lambda item: -sum(item[1].values())))

    def products(self) -> dict[str, float]:
        """Returns milliseconds in matmuls (and operations fused with them), by part."""
        table: dict[str, float] = defaultdict(float)
        for cost in self.instructions:
            table[cost.part] += cost.ms * cost.is_product
        return dict(table)

    def to_json(self) -> str:
        """Returns the whole profile as JSON, with `parts` and `products`."""
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
            "Instructions that run at the same time share the time equally. products: matmuls and",
            "operations fused with them. Gradients computed in the forward pass count as forward.",
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
    """Returns the profile of the program `module` from the events of a trace.

    Raises ValueError if the trace has no run of it.
    """
    devices = sorted({event.device for event in events if event.module == module})
    if not devices:
        raise ValueError(f"the trace has no run of {module} (of {len(events)} events)")
    ms: dict[str, float] = defaultdict(float)
    count: Counter = Counter()
    step = idle = 0.0
    between: list[float] = []
    for device in devices:
        here = [event for event in events if event.device == device]
        # Events without a program (kernels of a captured graph) are assigned to the step.
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
        between += [gap * MS for gap in gaps(spans, others)]
    n = len(devices)
    costs = [
        Cost.of(name, instructions.get(name, UNKNOWN), time / n, count[name] / (n * steps))
        for name, time in ms.items()
    ]
    return Profile(
        steps=steps,
        devices=n,
        step=step / n,
        idle=idle / n,
        between=sum(between) / len(between) if between else None,
        instructions=tuple(sorted(costs, key=lambda cost: -cost.ms)),
    )


def gaps(spans: list[tuple[float, float]], others: list[Event]) -> list[float]:
    """Returns the nanoseconds between runs of a program, but for gaps in which another ran."""
    return [
        max(0.0, start - end)
        for (_, end), (start, _) in pairwise(spans)
        if not any(e.start < start and e.end > end for e in others)
    ]


def check(steps: int, left: int) -> None:
    """Raises InputError if a run with `left` steps to go cannot trace `steps` of them."""
    if steps < 1:
        raise InputError(f"--profile {steps}: must be at least 1")
    if steps + WARM_UP > left:
        raise InputError(
            f"--profile {steps}: must be at most {max(left - WARM_UP, 0)}: {left} steps are left, "
            f"of which the first {WARM_UP} are not traced"
        )


class Profiler:
    """Traces `steps` steps of a run that starts or resumes at step `begin`; 0 traces none.

    Only the host process with `writes=True` traces; the others compile the same program. Where
    tracing fails, because the disk is full, say, `failed(what, error)` is called and the run goes
    on without a profile.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        begin: int,
        writes: bool = True,
        *,
        failed: Callable[[str, Exception], None],
    ):
        self.folder, self.steps, self.writes = folder / "profile", steps, writes
        self.first = begin + WARM_UP if steps else -1
        self.compiled: Any = None
        self.failed, self._is_tracing = failed, False

    def before(self, step: int, train_step: Any, state: Any, batch: Any) -> None:
        """Starts the trace if `step`, the number of finished steps, is the first to trace."""
        if step != self.first or self.compiled is not None:  # a run may repeat a step
            return
        # The program that the run executes; JAX has compiled it already.
        self.compiled = train_step.lower(state, batch).compile()
        jax.block_until_ready(state)
        if self.writes:
            self._attempt(self._start)

    def after(self, step: int, state: Any) -> Profile | None:
        """Returns the profile if `step`, the number of finished steps, ends the trace."""
        if self.compiled is None or step != self.first + self.steps:
            return None
        jax.block_until_ready(state)
        text, self.compiled = self.compiled.as_text(), None
        return self._attempt(partial(self._finish, text)) if self._is_tracing else None

    def close(self) -> None:
        """Stops a running trace, if any."""
        self.compiled = None
        if self._is_tracing:
            self._attempt(self._stop)

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it would slow down the profiled host
        jax.profiler.start_trace(self.folder, profiler_options=options)
        self._is_tracing = True

    def _stop(self) -> None:
        self._is_tracing = False
        jax.profiler.stop_trace()

    def _finish(self, text: str) -> Profile:
        """Ends the trace of a program of that text; reads it, and writes what it says."""
        self._stop()
        written = sorted(self.folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        if not written:
            raise FileNotFoundError(f"{self.folder} has no trace")
        data = jax.profiler.ProfileData.from_file(str(written[-1]))
        module = text.partition("HloModule ")[2].partition(",")[0]
        found = read(timeline.events(data), module, timeline.instructions(text), self.steps)
        write(self.folder / "profile.txt", f"{found}\n")
        write(self.folder / "profile.json", found.to_json() + "\n")
        return found

    def _attempt(self, call: Callable[[], T]) -> T | None:
        """Returns what a call returns, None if it fails: a profile never ends a run."""
        try:
            return call()
        except Exception as error:
            self.failed(f"tracing into {self.folder}", error)
            return None
