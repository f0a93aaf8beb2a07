"""Digests of files: written when the files are, and compared before they are used.

A folder's `digests.json` has the SHA-256 of each part of 64 MiB of its files, by their names below
the folder, and one of itself. For a file of one part that is what `sha256sum` prints. Folders and
files without digests, of older versions, are not checked.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from mdlm.cluster import process_group
from mdlm.files import replaced

NAME = "digests.json"
PART = 2**26
"""Bytes of a part: parts are read at the same time, by several threads and host processes."""
CHANGED = "has other bytes than were written"

Digests = dict[str, list[str]]


def write(folder: epath.Path, leave_out: Collection[str] = ()) -> None:
    """Writes the digests of all files below a folder, which may be on any storage."""
    names = [name for name in _names(folder) if name not in (NAME, *leave_out)]
    (folder / NAME).write_text(_text(_digests(folder, names)), encoding="utf-8")


@contextmanager
def sealed(folder: Path, *names: str) -> Iterator[None]:
    """Context in which files of a folder of this machine are written anew; then come their digests.

    Within it the files have none: one that a crash leaves behind is read unchecked.
    """
    kept = {name: d for name, d in _read_or_none(folder).items() if name not in names}
    _replace(folder, kept)
    yield
    there = [name for name in names if (folder / name).is_file()]
    _replace(folder, {**kept, **_digests(epath.Path(folder), there)})


def damage(folder: epath.Path | Path, *, leave_out: Collection[str] = ()) -> str | None:
    """Returns the name of a damaged file of the folder and what is wrong; None if all are sound."""
    found = _compared(epath.Path(folder), leave_out, rank=0, count=1)
    # A file may have been replaced, with its digest, while it was read.
    return found and _compared(epath.Path(folder), leave_out, rank=0, count=1)


def refusal(folder: Path, bad: str) -> str:
    """Returns the message about a damaged file of a run folder."""
    return f"{folder}: {bad}: restore it from a copy, or give --no-verify to use it all the same"


def damage_together(folder: epath.Path | Path, *, only: str | None = None) -> str | None:
    """As `damage`, for one file or all: each host process reads its share of the bytes.

    All processes call it, and get the same.
    """
    group = process_group.current()
    rank, count = (0, 1) if group is None else (group.index, group.count)
    where = epath.Path(folder)
    others = [] if only is None else [name for name in _read_or_none(where) if name != only]
    own = _compared(where, others, rank, count)
    return process_group.decide_together(own, lambda all_found: next(filter(None, all_found), None))


def _compared(folder: epath.Path, leave_out: Collection[str], rank: int, count: int) -> str | None:
    """Returns what is damaged in every `count`-th part, from the `rank`-th on."""
    try:
        known = _read(folder)
    except ValueError as error:
        return f"{NAME}, which has the digests of the other files ({error})"
    parts: list[tuple[str, int, str]] = []
    for name, digests in known.items():
        if name in leave_out:
            continue
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if _parts(_size(path)) != len(digests):
            return f"{name} {CHANGED}"
        parts += [(name, i, digest) for i, digest in enumerate(digests)]
    own = parts[rank::count]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda part: _digest(folder / part[0], part[1]), own)
        for (name, _, digest), here in zip(own, found, strict=True):
            if here != digest:
                return f"{name} {CHANGED}"
    return None


def _digests(folder: epath.Path, names: list[str]) -> Digests:
    parts = [(n, i) for n in names for i in range(_parts(_size(folder / n)))]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda part: _digest(folder / part[0], part[1]), parts)
        digests: Digests = {name: [] for name in names}
        for (name, _), digest in zip(parts, found, strict=True):
            digests[name].append(digest)
    return digests


def _size(path: epath.Path) -> int:
    """Returns the bytes of a file. On this machine it is not asked who owns it, for whom there may
    be no name, as in containers."""
    return path.stat().length if "://" in str(path) else os.stat(path).st_size


def _parts(size: int) -> int:
    return max(1, -(-size // PART))


def _digest(path: epath.Path, part: int) -> str:
    """Returns the digest of a part of a file, "" if it cannot be read."""
    state, left = hashlib.sha256(), PART
    try:
        with path.open("rb") as file:
            file.seek(part * PART)
            while left and (data := file.read(min(left, 2**22))):
                state.update(data)
                left -= len(data)
    except OSError:
        return ""
    return state.hexdigest()


def _names(folder: epath.Path, below: str = "") -> list[str]:
    found = []
    for path in folder.iterdir():
        name = f"{below}{path.name}"
        found += _names(path, f"{name}/") if path.is_dir() else [name]
    return sorted(found)


def _read(folder: epath.Path | Path) -> Digests:
    """Returns the digests of a folder. Raises ValueError if the file is damaged."""
    path = folder / NAME
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    values: Any = json.loads(text)
    files = values.get("files") if isinstance(values, dict) else None
    lists = list(files.values()) if isinstance(files, dict) else [None]
    if not all(isinstance(one, list) for one in lists) or text != _text(values["files"]):
        raise ValueError(CHANGED)
    return values["files"]


def _read_or_none(folder: epath.Path | Path) -> Digests:
    try:
        return _read(folder)
    except ValueError:
        return {}


def _replace(folder: Path, digests: Digests) -> None:
    with replaced(folder / NAME) as new:
        new.write_text(_text(digests), encoding="utf-8")


def _text(digests: Digests) -> str:
    own = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return json.dumps({"files": digests, "sha256": own}, indent=1) + "\n"
