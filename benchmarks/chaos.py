"""Kills and harms a training run at random moments, resumes it, and compares with a calm run.

    python -m benchmarks.chaos --kills 30 --seed 0

`mdlm train` in a process of its own gets SIGKILL, which cannot be caught: while it starts, while it
compiles (then with an empty cache of compiled programs, which later starts use as it was left),
between steps, and while a checkpoint is being written. It also gets SIGHUP, as from a terminal that
is closed, and must save; and between two starts its checkpoints vanish, or a bit of a file flips,
and it must be refused until that is undone. The same command then resumes the run. At
the end every array of the newest checkpoint (parameters, optimizer, EMA, step, counters) and its
position in the data must equal, bit by bit, those of an undisturbed run, and metrics.jsonl must
have each line once, with the same values. The exit code is 1 if anything differs.

The moments are drawn from `--seed`, but what the process is doing then depends on the machine; the
table is based on the files found on disk after the kill.
"""

import argparse
import json
import logging
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import harness, small
from benchmarks.damage import flip, vanish
from benchmarks.train_process import (
    BETWEEN,
    COMPILING,
    PHASES,
    SAVING,
    START,
    Life,
    is_saving,
    logged,
    newest,
)
from mdlm.errors import InputError

HANGUP, VANISHED, FLIPPED = "SIGHUP between steps", "checkpoints vanished", "flipped bit"
HARMS = {VANISHED: vanish, FLIPPED: flip}
SHARES = (
    *(SAVING, FLIPPED, HANGUP, VANISHED, START, SAVING, BETWEEN, FLIPPED, SAVING, COMPILING),
    *(BETWEEN, SAVING, FLIPPED, START, SAVING, BETWEEN),
)
"""The moments that are aimed at, in turns; the order is drawn."""
SAVE_EVERY, STEPS_PER_KILL = 8, 10
TIMED = {"time", "tokens_per_second", "flops_per_second", "mfu", "data_wait"}
"""Fields of a log line that describe the machine and not the run."""


@dataclass(frozen=True)
class Kill:
    aim: str
    phase: str
    logged: int  # last step of the log
    kept: int  # step of the newest complete checkpoint


@dataclass(frozen=True)
class Paces:
    """Seconds from the start of the process to the beginning of training, and from there to the
    first step, compilation included."""

    begin: float
    compile: float


def undisturbed(folder: Path, words: Sequence[str], cache: Path) -> Paces:
    """Trains to the end without interruption."""
    life = Life(folder, words, cache)
    life.wait_for(lambda: life.began is not None)
    life.wait_for(lambda: logged(folder) > 0)
    paces = Paces(life.took, time.monotonic() - life.start - life.took)
    life.finish()
    return paces


def disturbed(
    folder: Path, words: Sequence[str], cache: Path, kills: int, seed: int, paces: Paces
) -> list[Kill]:
    """Trains to the end with this many kills, or fewer if training ends before."""
    rng = random.Random(seed)
    aims = [SHARES[i % len(SHARES)] for i in range(kills)]
    rng.shuffle(aims)
    seen: list[Kill] = []
    with harness.working("killing") as say:
        while aims:
            aim, kept = aims.pop(0), newest(folder)
            if aim in HARMS:
                if not kept:  # there is nothing to harm yet
                    if HARMS.keys() >= set(aims):
                        return seen
                    aims.append(aim)
                    continue
                HARMS[aim](folder, words, cache, rng)
                seen.append(Kill(aim, aim, kept, kept))
                say(f"{len(seen)} of {kills}, {aim}, refused")
                continue
            if aim == COMPILING:
                cache = folder / f"cache-{len(seen)}"
            life = Life(folder, words, cache)
            if not life.wait_for(moment(life, aim, rng, paces)):
                life.finish()
                return seen
            phase = hang_up(life) if aim == HANGUP else life.kill()
            paces = replace(paces, begin=min(paces.begin, life.took))
            if life.began not in (None, kept):
                raise InputError(
                    f"the run resumed from step {life.began}, but step {kept} was saved"
                )
            seen.append(Kill(aim, phase, last_line(folder), newest(folder)))
            say(f"{len(seen)} of {kills}, {phase}, saved: step {seen[-1].kept}")
    Life(folder, words, cache).finish()
    return seen


def hang_up(life: Life) -> str:
    """Closes the terminal of a process, which must save. Raises InputError if it does not."""
    life.process.send_signal(signal.SIGHUP)
    life.finish(129)
    kept, made = newest(life.folder), last_line(life.folder)
    if kept != made:
        raise InputError(f"SIGHUP at step {made}, the newest checkpoint is of step {kept}")
    return HANGUP


def moment(life: Life, aim: str, rng: random.Random, paces: Paces) -> Callable[[], bool]:
    """Returns a function that tells when to kill: after a random time in the phase aimed at."""
    first: list[float] = []

    def since(reached: bool, seconds: float) -> bool:
        if reached and not first:
            first.append(time.monotonic())
        return bool(first) and time.monotonic() - first[0] >= seconds

    if aim == START:
        seconds = rng.uniform(0, 0.8 * paces.begin)
        return lambda: since(True, seconds)
    if aim == COMPILING:
        seconds = rng.uniform(0, paces.compile)
        return lambda: since(life.began is not None, seconds)
    if aim in (BETWEEN, HANGUP):
        lines, seconds = rng.randrange(1, 3 * SAVE_EVERY), rng.uniform(0, 0.05)
        return lambda: since(
            life.began is not None and logged(life.folder) >= life.lines + lines, seconds
        )
    # As soon as a checkpoint is seen being written, or a little later.
    before, seconds = rng.randrange(3), rng.choice([0.0, rng.uniform(0, 0.1)])

    def saving() -> bool:
        due = life.began is not None and newest(life.folder) >= life.began + before * SAVE_EVERY
        return since(due and is_saving(life.folder), seconds)

    return saving


def last_line(folder: Path) -> int:
    log = folder / "run" / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def saved(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of the newest checkpoint by name, and the data saved beside them,
    without the time of training."""
    checkpoints = folder / "run" / "checkpoints"
    path = checkpoints / str(newest(folder))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored: Any = reader.metadata(path / "state").item_metadata
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored.tree)
        state = reader.restore(path / "state", args=ocp.args.PyTreeRestore(restore_args=plain))
    arrays = {
        jax.tree_util.keystr(name): np.asarray(leaf)
        for name, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    data = json.loads((path / "data" / "metadata").read_text(encoding="utf-8"))
    return arrays, {name: value for name, value in data.items() if name != "seconds"}


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log without the fields that describe the machine."""
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(s).items() if k not in TIMED} for s in lines]


def differences(calm: Path, wild: Path) -> list[str]:
    """Describes the differences between the two finished runs."""
    (ours, place), (theirs, other) = saved(calm), saved(wild)
    found = [f"{name} is in one checkpoint only" for name in sorted(set(ours) ^ set(theirs))]
    for name in sorted(set(ours) & set(theirs)):
        a, b = ours[name], theirs[name]
        if (a.shape, a.dtype, a.tobytes()) != (b.shape, b.dtype, b.tobytes()):
            found.append(f"{name} differs")
    if place != other:
        found.append(f"saved beside the state: {place}, {other}")
    lines, others = log(calm), log(wild)
    if lines != others:
        each = [(line["kind"], line["step"]) for line in others]
        twice = sorted({one for one in each if each.count(one) > 1})
        found.append(f"metrics.jsonl: {len(lines)} and {len(others)} lines, twice: {twice[:5]}")
    return found


def compare(kills: int, seed: int, folder: Path) -> tuple[list[Kill], list[str]]:
    """Trains both runs; returns the kills, and the differences at the end."""
    calm, wild = folder / "undisturbed", folder / "killed"
    words = small.words(
        steps=2 * SAVE_EVERY + STEPS_PER_KILL * kills,
        eval_every=SAVE_EVERY,
        checkpoint_every=SAVE_EVERY,
        spike=20,
    )
    words += ["--network.dropout", "0.1"]
    for one in (calm, wild):
        small.prepare(one)
    with harness.working("the undisturbed run"):
        paces = undisturbed(calm, words, folder / "cache")
    seen = disturbed(wild, words, folder / "cache", kills, seed, paces)
    return seen, differences(calm, wild)


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison. Exits with 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--keep", metavar="FOLDER", help="keep both runs in this folder")
    args = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs each checkpoint that it opens
    if args.kills < 1:
        raise InputError(f"--kills {args.kills}: must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        seen, different = compare(args.kills, args.seed, Path(args.keep or folder))
    print("| killed or harmed | aimed at | times | steps repeated, median (most) |")
    print("|---|---|---|---|")
    for phase in (*PHASES, HANGUP, *HARMS):
        here = [kill for kill in seen if kill.phase == phase]
        again = [max(0, kill.logged - kill.kept) for kill in here] or [0]
        aimed = sum(kill.aim == phase for kill in seen)
        median = f"{np.median(again):g} ({max(again)})"
        print(f"| {phase} | {aimed} | {len(here)} | {median} |")
    print(f"\n{len(seen)} kills; " + ("; ".join(different) or "nothing differs at the end"))
    if different or len(seen) < args.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
