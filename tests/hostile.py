"""Hostile values, and the command line tried with them in a folder that it must not leave."""

import contextlib
import io
import json
import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny

from mdlm.cli.main import main

LIMIT = 30
"""Seconds that a case may take."""
WORDY = 4000
"""Characters that a refused command may print on standard error, its usage included."""
DEEP = "\N{SNOWMAN}deep\N{SNOWMAN}"
"""Stands for 100,000 nested lists, which `json.dumps` could not write."""

NUMBERS = {
    "minus": "-1",
    "zero": "0",
    "beyond": "99999999999999999999999",
    "infinite": "1e400",
    "nan": "nan",
    "long": "1" * 5000,
}
"""Texts given where a number is expected."""
TEXTS = {
    "empty": "",
    "surrogate": "a\udcff",
    "escape": "\x1b]0;owned\x07",
    "deep": "(" * 3000 + ")" * 3000,
    "long": "x" * 50_000,
    "url": "gs://nowhere/x",
    "no url": "://",
}
"""Texts given where a text is expected."""
JSON: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus": -1,
    "beyond": 10**30,
    "nan": float("nan"),
    "empty": "",
    "surrogate": "\ud800",
    "path": "../victim/x",
    "escape": "\x1b]0;owned\x07",
    "list": [],
    "object": {},
    "deep": DEEP,
}
"""Values given in the place of each value of a JSON file."""


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


class TooLong(BaseException):
    """The case took longer than it may. No handler of ordinary errors catches it."""


def attempt(words: list[str], folder: Path) -> Outcome:
    """Runs a command in `folder`/work, and checks what holds for any input.

    No exception leaves it, it ends in time, its exit code is one of those documented, what it says
    is short, and nothing in `folder` has changed but for the working folder.
    """
    out, err, before, here = _stream(), _stream(), listed(folder), Path.cwd()
    os.chdir(folder / "work")
    old = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _plain():
            code = main(words)
    except SystemExit as error:
        code = error.code
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        os.chdir(here)
    found = Outcome(int(code or 0), _text(out), _text(err))
    assert found.code in (0, 2, 3), found
    assert listed(folder) == before
    if found.code:
        last = found.err.strip().splitlines()[-1]
        assert last.startswith("mdlm"), found.err[-3000:]
        assert "Traceback" not in found.err and len(found.err) < WORDY, found.err[:3000]
    return found


def computes_nothing(patch: pytest.MonkeyPatch) -> None:
    """Lets commands end with success where they would begin to compute: their input is accepted."""

    def accepted(*_: Any, **__: Any) -> Any:
        raise SystemExit(0)

    patch.setattr("mdlm.train.loop.Trainer._batches", accepted)
    patch.setattr("mdlm.generation.generator.Generator.continue_from", accepted)
    patch.setattr("mdlm.evals.scorer.Scorer.run", accepted)


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", errors="surrogateescape")


def _too_long(number: int, frame: Any) -> None:
    raise TooLong(f"more than {LIMIT} s")


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Warnings are no errors, as for users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jax.config.update("jax_numpy_rank_promotion", "allow")
        try:
            yield
        finally:
            jax.config.update("jax_numpy_rank_promotion", "raise")


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    """The files and folders of `folder`, except its working folder: size and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] not in ("work", "home"):
            there = path.lstat()
            found[str(path)] = (there.st_size, there.st_mtime_ns)
    return found


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of a JSON value and of all that is in it; of a list, its first and last item."""
    yield path
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, (*path, name))
    elif isinstance(value, list):
        for number in dict.fromkeys((0, len(value) - 1)):
            if value:
                yield from leaves(value[number], (*path, number))


def changed(value: Any, path: tuple, new: Any) -> Any:
    """The JSON value with `new` at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def dumps(value: Any) -> str:
    """The text of a JSON value, in which DEEP is nested deeply."""
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)


def prepared(make: Path, folder: Path) -> Path:
    """A copy of the working folder `make`, beside a folder of a victim; returns where it lies."""
    shutil.copytree(make, folder / "work", symlinks=True)
    (folder / "victim" / "x").mkdir(parents=True)
    (folder / "victim" / "kept.txt").write_text("kept", encoding="utf-8")
    (folder / "home").mkdir()
    return folder


def made(folder: Path) -> Path:
    """A working folder with a text, an experiment, its run, a store, a trace and a tokenizer."""
    folder.mkdir()
    tiny.write_text(folder / "text.txt", words=1500)
    (folder / "tiny.py").write_text(tiny.FILE.format(text="text.txt"), encoding="utf-8")
    steps: list[list[str]] = [
        ["train", "tiny.py", "--out", "run", *SMALL],
        ["prepare", "tiny.py", "--out", "store", "--workers", "1"],
        ["sample", "run", "--steps", "3", "--length", "12", "--trace", "made.trace"],
        ["eval", "run", "--passes", "1"],
        ["tokenizer", "train", "text.txt", "--vocab-size", "300", "--out", "tokenizer"],
    ]
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert [main(words) for words in steps] == [0] * len(steps)
    finally:
        os.chdir(here)
    return folder


SMALL = [
    *("--train.steps", "4", "--train.eval_every", "2", "--train.checkpoint_every", "2"),
    *("--network.depth", "1", "--network.width", "16", "--train.eval_rows", "16"),
    *("--sampler.steps", "2", "--train.sample_length", "8"),
]
"""Settings with which a run takes little time."""
