"""What a run logs as it goes: metrics.jsonl, samples.txt, and the writers that were asked for."""

import contextlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from mdlm.errors import InputError
from mdlm.files import append, finite, replaced
from mdlm.foreign.typed_json import Count, decoded
from mdlm.runs.curves import EVALUATIONS
from mdlm.runs.writers import Writer

log = logging.getLogger(__name__)

Value = float | list[float] | str | None
"""What a line of metrics.jsonl has under a name."""


class Line(TypedDict):
    """What every line of metrics.jsonl has."""

    step: Count
    time: float


class Log:
    """The metrics and samples of the run in `folder`. Without `writes` it only reads.

    `writers` get each line of metrics too.
    """

    def __init__(self, folder: Path, *, writes: bool):
        self.writes = writes
        self.metrics_file, self.samples_file = folder / "metrics.jsonl", folder / "samples.txt"
        self.started = time.time()
        self.writers: tuple[Writer, ...] = ()
        self._unwritten: dict[Path, str] = {}

    def add(self, kind: str, step: int, values: Mapping[str, Value]) -> None:
        """Appends a line to metrics.jsonl: `{"kind", "step", "time", ...values}`.

        Numbers that are not finite are written as null. Writers get the numbers only.
        """
        if self.writes:
            line = {"kind": kind, "step": step, "time": round(time.time() - self.started, 2)}
            said = finite(dict(values))
            self._append(self.metrics_file, json.dumps({**line, **said}) + "\n")
            single = _singly(values)
            for writer in self.writers:
                _try(writer.log, kind, step, single)
            if kind in EVALUATIONS and self.writers:
                _try(self._add_table, kind, step)

    def add_samples(self, step: int, texts: list[str]) -> None:
        """Appends texts to samples.txt under a heading."""
        if self.writes:
            parts = (f"=== step {step}, sample {n} ===\n{t}\n\n" for n, t in enumerate(texts, 1))
            self._append(self.samples_file, "".join(parts))
            for writer in self.writers:
                _try(writer.add_samples, step, texts)

    def _add_table(self, kind: str, step: int) -> None:
        """Shows all evaluations of a kind to the writers, a row for each. Columns that are empty,
        or hold lists, are left out."""
        lines = [entry for entry in self.metrics() if entry["kind"] == kind]
        cells = (cell for line in lines for cell in line.items())
        filled = (name for name, value in cells if isinstance(value, int | float | str))
        columns = [name for name in dict.fromkeys(filled) if name not in ("kind", "time")]
        rows = [[line.get(name) for name in columns] for line in lines]
        for writer in self.writers:
            _try(writer.add_table, f"{kind}/table", step, columns, rows)

    def _append(self, file: Path, text: str = "") -> None:
        """Adds text to a file, after what a full disk had no room for before."""
        text = self._unwritten.pop(file, "") + text
        try:
            append(file, text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            warn_once(f"writing {file}", error)
            self._unwritten[file] = text

    def add_picture(self, step: int, path: Path) -> None:
        """Shows the picture at `path` to the writers."""
        for writer in self.writers:
            _try(writer.add_picture, step, path)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl, without an incomplete last line.

        Raises InputError if a line is damaged.
        """
        file = self.metrics_file
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        return [self._entry(line, n) for n, line in enumerate(text.split("\n")[:-1], 1)]

    def _readable(self) -> list[dict[str, Any]]:
        """Returns the lines that can be read. If others cannot, a copy of the file is kept."""
        try:
            return self.metrics()
        except InputError as error:
            warn_once("reading the log", error)
        shutil.copyfile(self.metrics_file, self._aside(self.metrics_file))
        lines = self.metrics_file.read_text(encoding="utf-8", errors="replace").split("\n")
        found = []
        for number, line in enumerate(lines, 1):
            with contextlib.suppress(InputError):
                found.append(self._entry(line, number))
        return found

    @staticmethod
    def _aside(file: Path) -> Path:
        return file.with_name(f"{file.stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{file.suffix}")

    def _entry(self, line: str, number: int) -> dict[str, Any]:
        try:
            return {**decoded(line, dict[str, Any]), **decoded(line, Line)}
        except ValueError as error:
            where = f"{self.metrics_file}, line {number}"
            raise InputError(f"{where}: damaged; remove the line, or the file") from error

    def rewind(self, step: int) -> None:
        """Drops the lines and samples after `step`, which a resumed run writes again."""
        if self.writes and self.metrics_file.is_file():
            kept = [entry for entry in self._readable() if entry["step"] <= step]
            self.started = time.time() - max((e["time"] for e in kept), default=0.0)
            with replaced(self.metrics_file) as new:
                new.write_text("".join(json.dumps(e) + "\n" for e in kept), encoding="utf-8")
        if self.writes and self.samples_file.is_file():
            # A text may hold half a character, and lines may have been added by hand.
            text = self.samples_file.read_text(encoding="utf-8", errors="surrogateescape")
            parts = re.split(r"(?m)^(?==== step \d+, sample 1 ===$)", text)
            heads = [re.match(r"=== step (\d+), sample 1 ===", part) for part in parts]
            steps = [int(head[1]) if head else 0 for head in heads]
            kept = [part for part, at in zip(parts, steps, strict=True) if at <= step]
            with replaced(self.samples_file) as new:
                new.write_text("".join(kept), encoding="utf-8", errors="surrogateescape")

    def set_aside(self) -> None:
        """Renames metrics.jsonl and samples.txt to names with the date."""
        for file in (self.metrics_file, self.samples_file):
            if file.is_file():
                file.rename(self._aside(file))

    def close(self) -> None:
        """Closes the writers. What had no room is written, if there is room now."""
        for file in list(self._unwritten):
            self._append(file)
        for writer in self.writers:
            _try(writer.close)


WARNED: set[str] = set()


def _try(add: Callable[..., None], *values: Any) -> None:
    """Calls a writer. An error of it is warned of once, and does not stop the run."""
    try:
        add(*values)
    except Exception as error:  # each package raises its own kinds
        warn_once(add.__qualname__, error)


def warn_once(what: str, error: BaseException) -> None:
    """Logs that a side output of a run failed, the first time that it does."""
    if what not in WARNED:
        WARNED.add(what)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("%s failed, the run goes on: %s", what, reason)


def _singly(values: Mapping[str, Value]) -> dict[str, float]:
    """Returns each number under its own name: the i-th of a list as `name/i`."""
    out: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            out |= {f"{name}/{i}": one for i, one in enumerate(value)}
        elif value is not None and not isinstance(value, str):
            out[name] = value
    return out
