"""Kills one of four processes of a run, resumes with two, and compares with an undisturbed run.

    python -m benchmarks.survive --out docs/survive.png

Four processes of one device each train on `data=2 fsdp=2` of one machine's CPU. At a step after a
checkpoint one of them gets SIGKILL; the others must end by themselves, with exit code 4. The same
command with two processes, on `tensor=2`, resumes from the checkpoint. The undisturbed run is one
process with one device. The picture shows both curves of the training loss and their difference.
The output has the seconds from the kill to the end of the last process, and the largest difference
before and after the kill. Losses differ by rounding only. The difference grows with training,
slowly at a small learning rate; at three times this one the curves separate after a hundred steps.
"""

import argparse
import json
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, small
from benchmarks.train_process import Life, newest
from mdlm.errors import InputError

LOST = 4
"""Exit code of a process when another process of its run was lost."""
PATIENCE = 120
"""Seconds within which the other processes must end; a minute is promised."""
FOUR, TWO = {"data": 2, "fsdp": 2, "tensor": 1}, {"data": 1, "fsdp": 1, "tensor": 2}

Curve = dict[int, float]
"""Training loss, nats per token, by step."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The results of both runs.

    `first` and `second` are the two parts of the run that lost a process; `first` includes the
    steps after its last checkpoint, which `second` repeated.
    """

    alone: Curve
    first: Curve
    second: Curve
    saved: int  # step that it resumed from
    ended: float  # seconds from the kill to the end of the other processes
    lines: tuple[str, ...]  # last output of those


def curve(folder: Path) -> Curve:
    """The training losses logged so far, by step."""
    log = folder / "run" / "metrics.jsonl"
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(
    folder: Path, words: Sequence[str], cache: Path, count: int, mesh: dict[str, int]
) -> list[Life]:
    """Starts this number of processes of one run."""
    at = f"127.0.0.1:{free_port()}"
    shape = [word for axis, size in mesh.items() for word in (f"--mesh.{axis}", str(size))]
    lives = []
    for i in range(count):
        here = ["--coordinator", at, "--processes", str(count), "--process", str(i)]
        lives.append(Life(folder, [*words, *shape, *here], cache, name=f"said-{count}-{i}.txt"))
    return lives


def survive(words: Sequence[str], kill_at: int, victim: int, folder: Path) -> Found:
    """Trains both runs. Raises InputError if a process ends in another way than expected."""
    alone, killed, cache = folder / "alone", folder / "killed", folder / "cache"
    for one in (alone, killed):
        small.prepare(one)
    with harness.working("one process, undisturbed"):
        Life(alone, words, cache).finish()
    with harness.working("four processes"):
        lives = start(killed, words, cache, 4, FOUR)
        reached = lambda: max(curve(killed), default=0) >= kill_at and newest(killed) > 0
        if not lives[0].wait_for(reached, patience=1200):
            raise InputError(f"the run ended before step {kill_at}; its output: {lives[0].said}")
        lives[victim].kill()
        moment = time.monotonic()
        others = [life for i, life in enumerate(lives) if i != victim]
        for life in others:
            life.finish(LOST, PATIENCE)
        ended = time.monotonic() - moment
    first, saved = curve(killed), newest(killed)
    with harness.working("two processes"):
        for life in start(killed, words, cache, 2, TWO):
            life.finish()
    second = {step: loss for step, loss in curve(killed).items() if step > saved}
    lines = tuple(life.said.strip().splitlines()[-1] for life in others)
    return Found(
        alone=curve(alone), first=first, second=second, saved=saved, ended=ended, lines=lines
    )


def apart(a: Curve, b: Curve) -> dict[int, float]:
    """The difference, at the steps that both have."""
    return {step: b[step] - a[step] for step in sorted(set(a) & set(b))}


def draw(found: Found, path: Path, title: str) -> None:
    """Draws both curves and their difference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, difference = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    loss.plot(*pairs(found.alone), color="#8a8f98", linewidth=4, alpha=0.5, label="1 process")
    parts = [
        (found.first, "#2563a8", f"4 processes, {named(FOUR)}"),
        (found.second, "#d1720a", f"2 processes, {named(TWO)}"),
    ]
    for part, colour, label in parts:
        loss.plot(*pairs(part), color=colour, linewidth=1.2, label=label)
        off = {step: abs(gap) for step, gap in apart(found.alone, part).items() if gap}
        difference.semilogy(*pairs(off), ".", color=colour, markersize=4)
    killed = max(found.first)
    for axes in (loss, difference):
        axes.axvline(killed, color="#b3261e", linewidth=1, linestyle="--")
        axes.axvline(found.saved, color="#8a8f98", linewidth=1, linestyle=":")
        axes.grid(alpha=0.2)
    loss.annotate(
        f"one is killed; the others end {found.ended:.0f} s later;\n"
        f"resumed from the checkpoint of step {found.saved}",
        (killed, max(found.alone.values())),
        xytext=(6, -4),
        textcoords="offset points",
        va="top",
        fontsize=9,
    )
    loss.set(ylabel="training loss, nats per token", title=title)
    difference.set(ylabel="difference from\n1 process, nats", xlabel="step")
    loss.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=110)


def pairs(part: Curve) -> tuple[list[int], list[float]]:
    return list(part), list(part.values())


def named(mesh: dict[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1)


def summary(found: Found) -> list[dict[str, Any]]:
    """The rows of the table: one for each part of the run."""
    rows = []
    for name, part in (("4 processes", found.first), ("2 processes", found.second)):
        off = apart(found.alone, part)
        rows.append(
            {
                "part": name,
                "steps": f"{min(part)}-{max(part)}",
                "lines compared": len(off),
                "largest difference": max(map(abs, off.values())),
                "of the loss": float(np.max([abs(d / found.alone[s]) for s, d in off.items()])),
            }
        )
    return rows


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison; writes its picture and prints its table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.survive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "experiment", nargs="?", help="an experiment file (default: a small one on made-up text)"
    )
    parser.add_argument("--steps", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--kill", type=int, default=170, help="step (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--victim", type=int, default=2, help="process (default: %(default)s)")
    parser.add_argument("--out", default="runs/benchmarks/survive.png", help="picture")
    parser.add_argument("--json", default="runs/benchmarks/survive.json", help="figures")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the runs in this folder")
    args = parser.parse_args(argv)
    if not args.save_every <= args.kill < args.steps or args.victim not in range(4):
        raise InputError(
            f"--kill {args.kill}: must be between --save-every and --steps; --victim: 0 to 3"
        )
    settings = {
        "steps": args.steps,
        "checkpoint_every": args.save_every,
        "eval_every": 0,
        "log_every": 1,
        "sample_length": 32,
    }
    words = small.words(**settings)
    if args.experiment:
        words[0] = str(Path(args.experiment).absolute())
    with tempfile.TemporaryDirectory() as folder:
        found = survive(words, args.kill, args.victim, Path(args.keep or folder))
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    title = f"{Path(words[0]).stem}: a run that lost a process"
    draw(found, Path(args.out), title)
    more = {"seconds until ended": found.ended, "saved": found.saved, "said": list(found.lines)}
    harness.report(title, summary(found), args.json, **more)
    print(f"killed at step {max(found.first)}; the others ended {found.ended:.1f} s later:")
    print("\n".join(f"  {line}" for line in found.lines))
    print(f"resumed from step {found.saved}; {args.out}")


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
