"""A file of many texts: one line of JSON for each, added as it is made.

A second start goes on after the last whole line, if the texts are made in the same way: the
settings lie beside the file, in `FILE.settings.json`. A line of which only a part was written is
dropped.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mdlm.errors import InputError
from mdlm.files import append, write
from mdlm.foreign.typed_json import Count, decoded
from mdlm.generation.texts import Generation, Text


class Line(TypedDict):
    """What a line holds: the number of the text, from 0, and what `Text` does; of texts whose cost
    is kept, also the NFE of their batch and their share of its seconds."""

    index: Count
    text: str
    tokens: list[Count]
    pieces: list[str]
    nfe: NotRequired[float]
    seconds: NotRequired[float]


class TextsFile:
    """The file at `path`, of texts made with `settings` (JSON values).

    Until it is closed no other process can write it. Raises InputError if one does, if the file
    holds something else, or texts made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path, self._beside = path, path.with_name(f"{path.name}.settings.json")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is no file; name one, or a new one")
        is_new = not path.exists()
        self._held = open(path, "ab")  # noqa: SIM115, it is locked until it is closed
        try:
            self._lock()
            self.count, end = self._whole_lines()
            if path.stat().st_size:
                self._check(json.loads(json.dumps(settings)))
            os.truncate(path, end)
            write(self._beside, json.dumps(settings, indent=1) + "\n")
        except BaseException:
            self.close()
            if is_new:
                path.unlink(missing_ok=True)
            raise

    def __enter__(self) -> "TextsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes write the file."""
        self._held.close()

    def add(self, texts: Sequence[Text], cost: Mapping[str, float] | None = None) -> None:
        """Adds the next texts, each with the fields of `cost`."""
        numbered, more = enumerate(texts, self.count), cost or {}
        lines = (json.dumps({"index": i, **vars(text), **more}) + "\n" for i, text in numbered)
        append(self.path, "".join(lines).encode())
        self.count += len(texts)

    def _lock(self) -> None:
        """Locks the file, unless it lies on a disk without locks."""
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{self.path}: another process writes it: wait until it ends, or name another file"
            ) from error
        except OSError:
            return

    def _whole_lines(self) -> tuple[int, int]:
        """The number of whole lines, and where the last one ends."""
        count = end = 0
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    is_next = decoded(line, Line)["index"] == count
                except ValueError:
                    is_next = False
                if not is_next:
                    raise InputError(
                        f"{self.path}, line {count + 1}: is not text {count} of `mdlm sample"
                        " --out`; name another file, or remove this line and those after it"
                    )
                count, end = count + 1, end + len(line)
        return count, end

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Raises InputError if the texts in the file were made with other settings."""
        try:
            known = decoded(self._beside.read_bytes(), dict[str, Any])
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self._beside}: cannot be read, so it is not known how {self.path} was made;"
                " name another file"
            ) from error
        names = dict.fromkeys([*known, *settings])
        other = [name for name in names if known.get(name) != settings.get(name)]
        if other:
            values = (f"{n} {_short(known.get(n))}, not {_short(settings.get(n))}" for n in other)
            raise InputError(
                f"{self.path}: holds texts made with other settings ({'; '.join(values)}); name"
                " another file, or remove this one"
            )


def fill(
    file: TextsFile | None,
    there: int,
    num: int,
    size: int,
    made: Callable[[int, int], Generation],
    report: Callable[[int, int], None],
    *,
    keeps_cost: bool = False,
) -> tuple[int, float]:
    """Makes the texts from number `there` to `num` in batches of `size`, and adds them to the file
    (None: another process does); returns their tokens and seconds.

    `made(count, first)` makes texts. Batches begin where those of an unbroken run do: then the last
    bits are the same too.
    """
    tokens, seconds = 0, 0.0
    for first in range(there // size * size, num if there < num else 0, size):
        report(max(first, there), num)
        out = made(min(size, num - first), first)
        tokens, seconds = tokens + out.new_tokens, seconds + out.seconds
        if file is not None:
            cost = {"nfe": out.nfe, "seconds": out.seconds / len(out.texts)}
            file.add(out.texts[max(0, there - first) :], cost if keeps_cost else None)
            report(file.count, num)
    return tokens, seconds


def read_texts(path: Path, num: int) -> list[Line]:
    """Returns the first `num` texts of a file that was filled."""
    with open(path, "rb") as file:
        return [decoded(line, Line) for line, _ in zip(file, range(num), strict=False)]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
