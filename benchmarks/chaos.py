"""A run that is killed at random moments and started again each time, beside one that is not.

    python -m benchmarks.chaos --kills 30 --seed 0

`mdlm train` in a process of its own gets SIGKILL, which nothing can catch: while it starts, while
it compiles (then with an empty folder of compiled programs, which later starts use as it was left),
between steps, and while a checkpoint is being written. The same command follows each time. In the
end every array of the newest checkpoint (parameters, optimizer, average, step, counters) and its
place in the data must be, bit by bit, those of a run that nobody disturbed, and metrics.jsonl must
hold each line once, with the same values. The exit code is 1 where anything differs.

The moments are drawn anew with each `--seed`, but what the process is doing then depends on the
machine; the table goes by what was found on disk afterwards.
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import harness
from mdlm.types import InputError

PHASES = ("start-up", "compiling", "between steps", "during save")
SHARES = (0, 3, 2, 3, 1, 2, 3, 2, 3, 0, 1, 3, 2)
"""Which phase each kill aims at, over and over: their order is drawn."""
SAVE_EVERY, STEPS_PER_KILL = 8, 8
TIMED = {"time", "tokens_per_second", "flops_per_second", "mfu", "data_wait"}
"""What a line of the log says of the machine, not of the run."""
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards make toxic brew".split()

EXPERIMENT = '''\
"""A small run."""

from mdlm.data.dataset import TextData
from mdlm.data.packing import Wrap
from mdlm.data.sources import TextFiles
from mdlm.data.tokenizers import Bytes
from mdlm.experiment import Experiment, Training
from mdlm.models.dit import DiT
from mdlm.optim import AdamW
from mdlm.samplers.ancestral import Ancestral

experiment = Experiment(
    name="chaos",
    data=TextData(
        source=TextFiles(train="text.txt"),
        tokenizer=Bytes(),
        packing=Wrap(length=64, row_specials=False),
    ),
    network=DiT(width=64, depth=2, heads=2, cond_dim=16, dropout=0.1),
    optimizer=AdamW(learning_rate=3e-3, warmup_steps=5),
    sampler=Ancestral(steps=4),
    train=Training(
        steps={steps},
        batch_size=16,
        ema_decay=0.9,
        log_every=1,
        eval_every={every},
        eval_rows=16,
        checkpoint_every={every},
        spike=20.0,
    ),
)
'''


@dataclass
class Life:
    """One start of the command: a process, and what can be seen of it from outside."""

    folder: Path
    cache: Path
    began: int | None = field(default=None, init=False)
    """Step it goes on from, once it has said so."""
    took: float = field(default=math.inf, init=False)
    """Seconds that it took until then."""
    lines: int = field(default=0, init=False)
    """Lines of the log when it had."""

    def __post_init__(self):
        self.start = time.monotonic()
        (self.folder / "said.txt").write_text("")
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment |= {"MDLM_CACHE": str(self.cache), "JAX_PLATFORMS": "cpu"}
        root = str(Path(__file__).parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
        with open(self.folder / "said.txt", "w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mdlm", "train", "chaos.py", "--out", "run"],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def look(self) -> None:
        """Notes whether it has begun."""
        if self.began is None and " device(s), step " in (said := self.said):
            self.began = int(said.split(" device(s), step ")[1].split()[0])
            self.lines = self.logged()
            self.took = time.monotonic() - self.start

    def logged(self) -> int:
        log = self.folder / "run" / "metrics.jsonl"
        return log.read_bytes().count(b"\n") if log.is_file() else 0

    def is_saving(self) -> bool:
        """Whether a checkpoint is on disk in part."""
        checkpoints = self.folder / "run" / "checkpoints"
        return checkpoints.is_dir() and not all(p.isdecimal() for p in os.listdir(checkpoints))

    def newest(self) -> int:
        """Step of the newest whole checkpoint, 0 where there is none."""
        checkpoints = self.folder / "run" / "checkpoints"
        names = os.listdir(checkpoints) if checkpoints.is_dir() else []
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def wait_for(self, what: Callable[[], bool], patience: float = 300) -> bool:
        """Waits until that is so. False where the process ended before."""
        end = time.monotonic() + patience
        while not what():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                self.process.kill()
                raise SystemExit(f"error: nothing for {patience:.0f} s; it said: {self.said}")
            time.sleep(0.0005)
            self.look()
        return True

    def kill(self) -> str:
        """Kills it; the phase it was in by what it left."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.look()
        if self.is_saving():
            return PHASES[3]
        if self.began is None:
            return PHASES[0]
        return PHASES[2] if self.logged() > self.lines else PHASES[1]


@dataclass(frozen=True)
class Kill:
    aim: str
    phase: str
    logged: int  # last step of the log
    kept: int  # step of the newest whole checkpoint


@dataclass(frozen=True)
class Paces:
    """Seconds that a start takes until it has begun, and from there to its first step, if that is
    to be compiled."""

    begin: float
    compile: float


def prepare(folder: Path, steps: int) -> None:
    """A folder with the experiment and its text."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    text = "\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(200))
    (folder / "text.txt").write_text(text + "\n")
    (folder / "chaos.py").write_text(EXPERIMENT.format(steps=steps, every=SAVE_EVERY))


def undisturbed(folder: Path, cache: Path) -> Paces:
    """Trains to the end at one go."""
    start = time.monotonic()
    life = Life(folder, cache)
    life.wait_for(lambda: life.began is not None)
    begun = time.monotonic()
    life.wait_for(lambda: life.logged() > 0)
    paces = Paces(begun - start, time.monotonic() - begun)
    finish(life)
    return paces


def finish(life: Life) -> None:
    if life.process.wait() != 0:
        raise SystemExit(f"error: mdlm train ended with {life.process.returncode}: {life.said}")


def disturbed(folder: Path, cache: Path, kills: int, seed: int, paces: Paces) -> list[Kill]:
    """Trains to the end with as many kills, or fewer where it ends before."""
    rng = random.Random(seed)
    aims = [PHASES[SHARES[i % len(SHARES)]] for i in range(kills)]
    rng.shuffle(aims)
    seen: list[Kill] = []
    with harness.working("killing") as say:
        for aim in aims:
            if aim == PHASES[1]:
                cache = folder / f"cache-{len(seen)}"
            kept = seen[-1].kept if seen else 0
            life = Life(folder, cache)
            if not life.wait_for(moment(life, aim, rng, paces)):
                finish(life)
                return seen
            phase = life.kill()
            paces = replace(paces, begin=min(paces.begin, life.took))
            if life.began not in (None, kept):
                raise SystemExit(f"error: it went on from step {life.began}, {kept} was saved")
            seen.append(Kill(aim, phase, last_line(folder), life.newest()))
            say(f"{len(seen)} of {kills}, {phase}, saved: step {seen[-1].kept}")
    finish(Life(folder, cache))
    return seen


def moment(life: Life, aim: str, rng: random.Random, paces: Paces) -> Callable[[], bool]:
    """Tells when it is time: some random while into the phase aimed at."""
    first: list[float] = []

    def since(reached: bool, seconds: float) -> bool:
        if reached and not first:
            first.append(time.monotonic())
        return bool(first) and time.monotonic() - first[0] >= seconds

    if aim == PHASES[0]:
        seconds = rng.uniform(0, paces.begin)
        return lambda: since(True, seconds)
    if aim == PHASES[1]:
        seconds = rng.uniform(0, paces.compile)
        return lambda: since(life.began is not None, seconds)
    if aim == PHASES[2]:
        lines, seconds = rng.randrange(1, 2 * STEPS_PER_KILL), rng.uniform(0, 0.05)
        return lambda: since(
            life.began is not None and life.logged() >= life.lines + lines, seconds
        )
    number, seconds = rng.randrange(1, 3), rng.choice([0.0, rng.uniform(0, 0.2)])
    saves: list[int] = [0]

    def saving() -> bool:
        if life.began is not None and life.newest() >= life.began + (number - 1) * SAVE_EVERY:
            saves[0] += life.is_saving()
        return since(saves[0] > 0, seconds)

    return saving


def last_line(folder: Path) -> int:
    log = folder / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def saved(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every array of the newest checkpoint by its name, and what was saved beside them."""
    checkpoints = folder / "run" / "checkpoints"
    newest = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())
    path = checkpoints / str(newest)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored: Any = reader.metadata(path / "state").item_metadata
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored.tree)
        state = reader.restore(path / "state", args=ocp.args.PyTreeRestore(restore_args=plain))
    arrays = {
        jax.tree_util.keystr(name): np.asarray(leaf)
        for name, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return arrays, json.loads((path / "data" / "metadata").read_text())


def log(folder: Path) -> list[dict[str, Any]]:
    """The log without what it says of the machine."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(s).items() if k not in TIMED} for s in lines]


def differences(calm: Path, wild: Path) -> list[str]:
    """What is not the same in the end."""
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
    """Both runs; the kills that there were, and what differs in the end."""
    calm, wild = folder / "undisturbed", folder / "killed"
    steps = 2 * SAVE_EVERY + STEPS_PER_KILL * kills
    for one in (calm, wild):
        prepare(one, steps)
    with harness.working("the undisturbed run"):
        paces = undisturbed(calm, folder / "cache")
    seen = disturbed(wild, folder / "cache", kills, seed, paces)
    return seen, differences(calm, wild)


def run(argv: Sequence[str] | None = None) -> None:
    """The comparison. Exits with 1 where anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="FOLDER", help="where to leave both runs")
    args = parser.parse_args(argv)
    if args.kills < 1:
        raise InputError(f"--kills {args.kills}: at least one is needed")
    with tempfile.TemporaryDirectory() as folder:
        seen, different = compare(args.kills, args.seed, Path(args.keep or folder))
    print("| killed | aimed at | times | steps made again, median (most) |")
    print("|---|---|---|---|")
    for phase in PHASES:
        here = [kill for kill in seen if kill.phase == phase]
        again = [max(0, kill.logged - kill.kept) for kill in here] or [0]
        aimed = sum(kill.aim == phase for kill in seen)
        median = f"{np.median(again):g} ({max(again)})"
        print(f"| {phase} | {aimed} | {len(here)} | {median} |")
    print(f"\n{len(seen)} kills; " + ("; ".join(different) or "nothing differs in the end"))
    if different or len(seen) < args.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
