"""What happens to a run between two starts: its checkpoints vanish, a bit of a file flips.

Each function harms the run folder `run` in `folder`, starts the command, which must refuse the run
in one line and change nothing, and undoes the harm. Raises InputError if the run is not refused.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.train_process import Life, newest
from mdlm.errors import InputError
from mdlm.runs import digests
from mdlm.runs.checkpoints import STAMPED

KEPT = ("config.json", "env.json", "experiment.py", digests.NAME, "data/tokenizer.json")
"""Files of a run folder, beside its checkpoints, that a run is resumed from."""


def vanish(folder: Path, words: Sequence[str], cache: Path, rng: random.Random) -> None:
    """The folder of checkpoints is away, as a disk that is not mounted."""
    there, away = folder / "run" / "checkpoints", folder / "away"
    there.rename(away)
    _refused(folder, words, cache, "--restart")
    if there.exists():
        raise InputError(f"{there} was made anew while the checkpoints were away")
    away.rename(there)


def flip(folder: Path, words: Sequence[str], cache: Path, rng: random.Random) -> None:
    """One bit flips, in a file of the newest checkpoint or of the run folder."""
    run = folder / "run"
    saved = run / "checkpoints" / str(newest(folder))
    found = [path for path in saved.rglob("*") if path.is_file() and path.stat().st_size]
    found = sorted(path for path in found if path.relative_to(saved).as_posix() not in STAMPED)
    path = rng.choice([*found, *(run / name for name in KEPT)])
    whole = path.read_bytes()
    at, bit = rng.randrange(len(whole)), rng.randrange(8)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    _refused(folder, words, cache, path.name if path.name != "metrics" else "step")
    path.write_bytes(whole)


def _refused(folder: Path, words: Sequence[str], cache: Path, said: str) -> None:
    """Starts the command, which must end with 2, say `said` in one line, and keep its logs."""
    logs = [folder / "run" / name for name in ("metrics.jsonl", "samples.txt")]
    before = [log.read_bytes() for log in logs if log.exists()]
    life = Life(folder, words, cache)
    life.finish(2)
    lines = [line for line in life.said.splitlines() if line.startswith("mdlm: ")]
    if len(lines) != 1 or said not in lines[0] or "Traceback" in life.said:
        raise InputError(f"expected one line with {said}, got: {life.said}")
    if before != [log.read_bytes() for log in logs if log.exists()]:
        raise InputError(f"a refused start has changed the log of {folder / 'run'}")
