"""Hostile values, and the command line tried with them in a folder that it must not leave."""

import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

LIMIT = 30
"""Seconds of work that a case may take; ten times that in all, on a busy machine."""
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


def some(table: dict[str, Any], number: int, count: int = 3) -> dict[str, Any]:
    """A few values of a table; over many numbers, each of them equally often."""
    names = list(table)
    step = max(1, len(names) // count)
    chosen = {names[(number + k * step) % len(names)] for k in range(count)}
    return {name: table[name] for name in names if name in chosen}


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


class Worker:
    """A process that runs commands, one after the other, as users do: on one device, without the
    checks of tests. It computes nothing: a command whose input is accepted ends there."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self.attempts = 0

    def attempt(
        self, words: list[str], folder: Path, environment: dict[str, str] | None = None
    ) -> Outcome:
        """Runs a command in `folder`/work, and checks what holds for any input.

        No exception leaves it, it ends in time, its exit code is one of those documented, what it
        says is short, and nothing in `folder` has changed but for the working folder.
        """
        before = listed(folder)
        found = self._asked(
            {"words": words, "folder": str(folder), "environment": environment or {}}
        )
        self.attempts += 1
        assert found.code in (0, 2, 3), found.err[-3000:]
        assert listed(folder) == before, "something outside the working folder has changed"
        if found.code:
            assert "Traceback" not in found.err and len(found.err) < WORDY, found.err[-3000:]
            assert found.err.strip().splitlines()[-1].startswith("mdlm: "), found.err[-3000:]
        return found

    def _asked(self, message: dict[str, Any]) -> Outcome:
        process = self._process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
        began, ready, until = worked(process.pid), [], time.monotonic() + 10 * LIMIT
        while not ready and worked(process.pid) - began < LIMIT and time.monotonic() < until:
            ready, *_ = select.select([process.stdout], [], [], 1.0)
        line = process.stdout.readline() if ready else b""
        if line:
            return Outcome(**json.loads(line))
        self.close()
        raise AssertionError(f"it ended, or took more than {LIMIT} s: code {process.returncode}")

    @staticmethod
    def _started() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
        )
        assert process.stdout is not None
        process.stdout.readline()  # what it imports is there
        return process

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def worked(process: int) -> float:
    """The seconds for which a process has worked, where the system says so."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return time.monotonic()
    user, system = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def serve() -> None:
    """Answers each line of standard input, a command and a folder, with the outcome."""
    import mdlm.run  # noqa: F401, so that the first case does not import it
    import mdlm.train.session  # noqa: F401
    from mdlm.evals.likelihood import Likelihood
    from mdlm.evals.scorer import Scorer
    from mdlm.generation.generator import Generator
    from mdlm.train import start
    from mdlm.train.loop import Trainer

    def accepted(*_: Any, **__: Any) -> Any:
        raise SystemExit(0)

    Trainer._batches = Generator.continue_from = Scorer.run = start.create_state = accepted
    Likelihood.__call__ = accepted
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print(file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(vars(run(**json.loads(line)))), file=answers, flush=True)


def run(words: list[str], folder: str, environment: dict[str, str]) -> Outcome:
    """Runs a command in `folder`/work, in this process."""
    from mdlm.cli.main import main

    out, err = _stream(), _stream()
    environment = {"XDG_CACHE_HOME": f"{folder}/home", **environment}
    os.environ.update(environment)
    os.chdir(f"{folder}/work")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc(file=err)
        code = 1
    finally:
        for name in environment:
            del os.environ[name]
    return Outcome(int(code or 0), _text(out), _text(err))


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", errors="replace")


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
    """A working folder with a text, pairs, an experiment, its run, a store, a trace, tokenizers."""
    folder.mkdir()
    tiny.write_text(folder / "text.txt", words=1500)
    (folder / "tiny.py").write_text(tiny.FILE.format(text="text.txt"), encoding="utf-8")
    pair = {"prompt": "the quick", "response": " fox"}
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
    script = f"import sys; from mdlm.cli.main import main; sys.exit(max(map(main, {steps()!r})))"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True)
    return folder


def steps() -> list[list[str]]:
    """The commands that make the folder."""
    return [
        ["train", "tiny.py", "--out", "run", *SMALL],
        ["prepare", "tiny.py", "--out", "store", "--workers", "1"],
        ["sample", "run", "--steps", "3", "--length", "12", "--trace", "made.trace"],
        ["eval", "run", "--passes", "1"],
        ["tokenizer", "train", "text.txt", "--vocab-size", "300", "--out", "tokenizer"],
    ]


SMALL = [
    *("--train.steps", "4", "--train.eval_every", "2", "--train.checkpoint_every", "2"),
    *("--network.depth", "1", "--network.width", "16", "--train.eval_rows", "16"),
    *("--sampler.steps", "2", "--train.sample_length", "8"),
]
"""Settings with which a run takes little time."""


if __name__ == "__main__":
    serve()
