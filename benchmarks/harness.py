"""Shared code of all benchmarks: compiling, timing in turns, and the table with its JSON file.

Timing noise of a machine is correlated over time. So the cases of a benchmark are timed in turns,
each once per round, and the comparison uses the ratios *within* a round: `ratio` is their median.
Times are given as median and interquartile range over the rounds.
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
"""Seconds after which a slow task prints on stderr what it is doing."""
QUIET = 0.05
"""Fraction of the cores that other processes may use before a warning is printed."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A compiled function, with facts from its compilation."""

    call: Callable[..., Any]
    compile_seconds: float  # tracing and lowering included
    temp_bytes: int | None  # temporaries, None if the backend does not report it
    peak_bytes: int | None  # arguments, outputs and temporaries, shared memory counted once


def build(fn: Callable[..., Any], *args: Any, **jit_kwargs: Any) -> Built:
    """Compiles `fn` for arguments like `args` (arrays or `jax.ShapeDtypeStruct`).

    A jitted function keeps its own settings; `jit_kwargs` are for other functions.
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

    `others` is the fraction of the machine's cores that other processes used meanwhile, None if
    the system does not report it.
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

    A case is timed until its results are ready. The number of calls per round follows from the
    warm-up: as many as fit into `seconds`, at least one. `calls` sets it instead, without warm-up,
    for cases that are long and warm already. Every other round runs the cases in reverse order,
    so that a machine that slows down steadily favours none.
    """
    # Calls to an accelerator are dispatched asynchronously, as in training. On the CPU two
    # independent calls would share the cores and spoil the timing.
    ahead = jax.default_backend() != "cpu"

    def timed(case: Callable[[], Any], calls: int) -> float:
        # Without this call the first of several short ones would pay for caches filled by the
        # other case, and for its threads that still spin.
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
            # The first call is slow; a call much longer than a turn needs no better estimate.
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
                f"  other processes used {times.others:.0%} of this machine's cores meanwhile:"
                " repeat the measurement when they are done",
                file=sys.stderr,
            )
    return times


def _busy() -> tuple[float, float] | None:
    """Core seconds since some moment: used by other processes, and available."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal, in ticks (proc(5)).
    ticks = [int(field) for field in first.split()[1:9]]
    total, idle = (n / os.sysconf("SC_CLK_TCK") for n in (sum(ticks), ticks[3] + ticks[4]))
    return total - idle - sum(os.times()[:4]), total


def first_call(name: str, case: Callable[[], Any]) -> float:
    """Seconds of the first call of a case: mostly compilation by PyTorch."""
    start = time.perf_counter()
    with working(f"compiling {name}"):
        jax.block_until_ready(case())
    return time.perf_counter() - start


def median(values: Sequence[float]) -> float:
    """Median."""
    return float(np.median(values))


def spread(values: Sequence[float]) -> float:
    """Interquartile range."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios within each round, of two lists that `alternate` returned together."""
    return median(np.divide(numerator, denominator).tolist())


def mebibytes(size: int | None) -> float | None:
    """Bytes as MiB."""
    return None if size is None else size / 2**20


def utilisation(flops: float, peak: Peak) -> float | None:
    """MFU in percent for `flops` per second, None if the peak is unknown."""
    return None if peak.flops is None else 100 * flops / peak.flops


def peak_in_words(peak: Peak) -> str:
    """Describes the peak and the source of its figure."""
    if peak.flops is None:
        return f"peak unknown ({peak.source})"
    return f"peak {peak.flops / 1e12:.3g} TFLOP/s ({peak.source})"


@contextlib.contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Prints on stderr what is running, once it has taken longer than `PATIENCE`.

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

    A row is a mapping from heading to number, text or None. Lists (the times of each round) and the
    values of `more` are written to the file only. Returns the content of the file.
    """
    written = {"title": title, **more, "rows": list(rows), "environment": environment()}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")

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

    `sizes` are the defaults of the options, which also determine their types.
    """
    found = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for size, default in sizes.items():
        option = "--" + size.replace("_", "-")
        found.add_argument(option, type=type(default), default=default, help=f"default: {default}")
    found.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="seconds per case and round, approximately (default: 1)",
    )
    found.add_argument(
        "--rounds", type=int, default=7, help="rounds to time (default: %(default)s)"
    )
    found.add_argument(
        "--json",
        default=str(RESULTS / f"{name}.json"),
        metavar="FILE",
        help="result file (default: %(default)s)",
    )
    return found


def main(run: Callable[[Sequence[str] | None], Any]) -> int:
    """Runs a benchmark's command; returns its exit code. An InputError is printed as one line."""
    keep_freed()
    try:
        run(None)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
