"""What every benchmark shares: compiling, timing in turns, and the table with its JSON.

Machines are noisy, and noise comes in stretches. So the cases of a benchmark are timed in turns,
each once per round, and what is compared is the ratio *within* a round: `ratio` is the median of
those. Times themselves are given as median and interquartile range over the rounds.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.environment import environment
from mdlm.cli.malloc import keep_freed
from mdlm.errors import InputError
from mdlm.profiling.peak import Peak

RESULTS = Path("runs/benchmarks")
PATIENCE = 2.0
"""Seconds after which something that takes time says on stderr what it is."""
QUIET = 0.05
"""Share of the cores that others may have before a measurement says that it was disturbed."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A compiled function and what its compilation tells."""

    call: Callable[..., Any]
    compile_seconds: float  # tracing and lowering included
    temp_bytes: int | None  # temporaries, None where the backend does not say
    peak_bytes: int | None  # arguments, outputs and temporaries, those that share memory once


def build(fn: Callable[..., Any], *args: Any, **jit_kwargs: Any) -> Built:
    """Compiles `fn` for arguments like `args` (arrays or `jax.ShapeDtypeStruct`).

    A function that is jitted already keeps its own settings; `jit_kwargs` are for others.
    """
    jitted: Any = fn if hasattr(fn, "lower") and not jit_kwargs else jax.jit(fn, **jit_kwargs)
    start = time.perf_counter()
    with working("compiling"):
        compiled = jitted.lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temporary = peak = None
    if memory is not None:
        temporary = memory.temp_size_in_bytes
        peak = temporary + memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak -= memory.alias_size_in_bytes
    return Built(call=compiled, compile_seconds=seconds, temp_bytes=temporary, peak_bytes=peak)


class Times(dict[str, list[float]]):
    """Seconds per call of each case in each round.

    `others` is the share of the machine's cores that other processes had meanwhile, None where
    the system does not say.
    """

    others: float | None = None


def alternate(
    cases: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 7,
    seconds: float = 1.0,
    calls: int | None = None,
) -> Times:
    """Seconds per call of each case in each round.

    A case is called until its result is ready. How often it is called in a round follows from
    its warm-up: as often as fits into `seconds`, once at least. `calls` says it instead, for cases
    that are long and warm. Every other round goes backwards through the cases, so that a machine
    that slows down steadily favours none.
    """
    # The host may run ahead of an accelerator, as it does in training. On the CPU two calls that
    # do not depend on each other would share the cores and time nothing in particular.
    ahead = jax.default_backend() != "cpu"

    def timed(case: Callable[[], Any], calls: int) -> float:
        # Of several short calls the first would pay for what the other case left in the caches
        # and for its threads that still wait, spinning, for more work.
        result = jax.block_until_ready(case()) if calls > 1 else None
        start = time.perf_counter()
        for _ in range(calls):
            result = case()
            if not ahead:
                jax.block_until_ready(result)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    def that_fit(name: str) -> int:
        with working(f"warming up {name}"):
            once = timed(cases[name], 1)
            # The first call is slow; one that is far longer than a turn need not be known better.
            once = min(once, timed(cases[name], 1)) if once < 10 * seconds else once
        return max(1, round(seconds / once))

    often = {name: calls or that_fit(name) for name in cases}
    times, before = Times({name: [] for name in cases}), _busy()
    with working("measuring") as say:
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for name in list(cases)[:: -1 if number % 2 else 1]:
                times[name].append(timed(cases[name], often[name]))
    after = _busy()
    if before and after and after[1] > before[1]:
        times.others = max(0.0, (after[0] - before[0]) / (after[1] - before[1]))
        if times.others > QUIET:
            print(
                f"  other processes had {times.others:.0%} of this machine's cores meanwhile:"
                " repeat it when they are done",
                file=sys.stderr,
            )
    return times


def _busy() -> tuple[float, float] | None:
    """Core seconds, since some moment, that others used and that there were."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal, in ticks (proc(5)).
    ticks = [int(field) for field in first.split()[1:9]]
    total, idle = (n / os.sysconf("SC_CLK_TCK") for n in (sum(ticks), ticks[3] + ticks[4]))
    return total - idle - sum(os.times()[:4]), total


def first_call(name: str, case: Callable[[], Any]) -> float:
    """Seconds of a case's first call: what PyTorch takes to compile, mostly."""
    start = time.perf_counter()
    with working(f"compiling {name}"):
        jax.block_until_ready(case())
    return time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(np.median(values))


def spread(values: Sequence[float]) -> float:
    """Interquartile range."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios within each round; two lists that `alternate` returned together."""
    return median(np.divide(numerator, denominator).tolist())


def mebibytes(size: int | None) -> float | None:
    """Bytes as MiB."""
    return None if size is None else size / 2**20


def utilisation(flops: float, peak: Peak) -> float | None:
    """MFU in percent of `flops` per second, None where the peak is not known."""
    return None if peak.flops is None else 100 * flops / peak.flops


def peak_in_words(peak: Peak) -> str:
    """The peak and where its figure is from."""
    if peak.flops is None:
        return f"peak not known ({peak.source})"
    return f"peak {peak.flops / 1e12:.3g} TFLOP/s ({peak.source})"


@contextlib.contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Says on stderr what goes on, once it has taken longer than `PATIENCE`.

    Yields a function that replaces the text.
    """
    start, ended, current = time.perf_counter(), threading.Event(), [text]

    def watch() -> None:
        shown = ""
        while not ended.wait(PATIENCE if not shown else 0.2):
            if current[0] != shown:
                shown = current[0]
                seconds = time.perf_counter() - start
                print(f"  {shown} ({seconds:.0f} s so far)", file=sys.stderr, flush=True)

    def say(text: str) -> None:
        current[0] = text

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield say
    finally:
        ended.set()
        thread.join()


def report(
    title: str, rows: Sequence[Mapping[str, Any]], out: str | Path, **more: Any
) -> dict[str, Any]:
    """Prints the rows as a table and writes them to the JSON file `out`, with the environment.

    A row is a mapping from heading to number, text or None. Lists (the times of each round) and
    what `more` holds are for the file only. Returns what was written.
    """
    written = {"title": title, **more, "rows": list(rows), "environment": environment()}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written, indent=1) + "\n")

    shown = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
    headings = list(dict.fromkeys(heading for row in shown for heading in row))
    cells = [headings, *[[_cell(row.get(heading)) for heading in headings] for row in shown]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(headings))]
    print(title)
    for line in cells:
        # Names to the left, numbers to the right.
        first, *others = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join([first, *others]).rstrip())
    print(f"({out})", flush=True)
    return written


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if value == 0 or 1e-3 <= abs(value) < 10:
            return f"{value:.3f}"
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:,.{1 if abs(value) < 1e3 else 0}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def parser(name: str, description: str | None, **sizes: Any) -> argparse.ArgumentParser:
    """A command line with `--seconds`, `--rounds`, `--json`, and an option for each size.

    Sizes are given with their defaults, which say the type.
    """
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for size, default in sizes.items():
        option = "--" + size.replace("_", "-")
        found.add_argument(option, type=type(default), default=default, help=f"default {default}")
    found.add_argument(
        "--seconds", type=float, default=1.0, help="per case and round, about (default 1)"
    )
    found.add_argument("--rounds", type=int, default=7, help="default %(default)s")
    found.add_argument(
        "--json", default=str(RESULTS / f"{name}.json"), metavar="FILE", help="default %(default)s"
    )
    return found


def main(run: Callable[[Sequence[str] | None], Any]) -> int:
    """Exit status of a benchmark's command: an InputError is one line."""
    keep_freed()
    try:
        run(None)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
