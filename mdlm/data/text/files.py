"""Reading text files: the files that a pattern matches, and their documents, piece by piece.

No file is held in memory: a long document comes in pieces of a megabyte, and every piece carries
the position from which reading can be resumed.
"""

import glob
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mdlm.data.text.utf8 import EmptyFile, NotUTF8, Opened, read_text
from mdlm.errors import InputError
from mdlm.foreign.limits import check_within, limit

NOT_UTF8, NULL, EMPTY = "not UTF-8", "null instead of text", "a file without text"
"""The reasons under which documents or files that are left out are counted."""
FREELY = 2**28
"""Characters to which any file may expand."""
BATCH = 1024
"""Rows of a Parquet file held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Part of a document. The pieces of a split are its documents in order.

    `ends`: the document ends with this piece. `position` (JSON) resumes reading after this piece.
    `done`: fraction of the split read so far, None if unknown. `dropped` counts, by reason, the
    documents left out since the previous piece; a last piece without text may carry the counts of
    those at the end.
    """

    text: str
    ends: bool
    position: Any
    done: float | None = None
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How documents are stored in files; see `sources.TextFiles`."""

    text_field: str = "text"
    separator: str | None = None
    undecodable: Literal["refuse", "drop"] = "refuse"


def matching_files(patterns: Iterable[str]) -> list[Path]:
    """Returns the files that match, in the order of the patterns and by name within each.

    Raises InputError if a pattern names a folder or matches no file.
    """
    found: list[Path] = []
    for pattern in _whole_names(list(patterns)):
        path = Path(os.path.expanduser(pattern))  # no error without a home folder
        if path.is_dir():
            raise InputError(f"{pattern} is a folder: name its files, such as {pattern}/*.txt")
        matches = _matches(pattern)
        if not matches and not glob.has_magic(pattern):
            raise InputError(f"file not found: {pattern}")
        if not matches:
            raise InputError(f"no file matches {pattern}")
        for path in matches:
            if path.exists() and not path.is_file():
                raise InputError(
                    f"{path}: a pipe or a device, which can be read once only: copy it to a file"
                )
        found += matches
    return found


def _matches(pattern: str) -> list[Path]:
    """Returns the files of a pattern. Brackets stand for themselves if that alone finds files."""
    path = Path(pattern).expanduser()
    if path.exists():
        return [path]
    for name in (str(path), str(path).replace("[", "[[]")):
        matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
        if matches := [match for match in matches if match.is_file()]:
            return matches
    return []


def _whole_names(parts: list[str]) -> Iterator[str]:
    """Yields the names; a name with a comma, which command lines divide, is put together again."""
    start = 0
    while start < len(parts):
        stops = range(start + 1, len(parts) + 1)
        found = (stop for stop in stops if _matches(",".join(parts[start:stop])))
        stop = next(found, start + 1)
        yield ",".join(parts[start:stop])
        start = stop


def gather(pieces: Iterable[Piece]) -> list[str]:
    """Returns the documents that the pieces form."""
    documents: list[str] = []
    parts: list[str] = []
    for piece in pieces:
        parts.append(piece.text)
        if piece.ends:
            documents.append(parts[0] if len(parts) == 1 else "".join(parts))
            parts = []
    return documents


def read_pieces(paths: list[Path], form: Form, position: Any = None) -> Iterator[Piece]:
    """Yields the text of files, one after the other. Raises InputError if one cannot be read."""
    for path in paths:
        if _ending(path) not in READERS:
            raise InputError(
                f"{path}: unknown ending: must be .txt, .jsonl (either also with .gz) or .parquet"
            )
    sizes = [path.stat().st_size for path in paths]
    first, inner = (0, {}) if position is None else (position["file"], position["at"])
    anything, empty = position is not None, None
    for number, path in list(enumerate(paths))[first:]:
        before, size, there = sum(sizes[:number]), max(sizes[number], 1), 0
        try:
            for found in _guarded(path, READERS[_ending(path)](path, form, inner)):
                anything, there = anything or bool(found.text), there + len(found.text)
                check_expansion(path, size, there)
                yield Piece(
                    text=found.text,
                    ends=found.ends,
                    position={"file": number, "at": found.at},
                    done=(before + found.share * size) / max(sum(sizes), 1),
                    dropped=found.dropped,
                )
        except EmptyFile as error:
            empty = error
            after = {"file": number + 1, "at": {}}
            yield Piece(text="", ends=False, position=after, dropped={EMPTY: 1})
        inner = {}
    if not anything and len(paths) == 1 and empty is not None:
        raise empty
    if not anything:
        raise InputError(f"no text in {', '.join(map(str, paths))}")


@dataclass(frozen=True)
class _Found:
    """Text of one file; `at` is the position after it, `share` the fraction of the file read."""

    text: str
    ends: bool
    at: dict[str, Any]
    share: float
    dropped: dict[str, int] = field(default_factory=dict)


def _ending(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _guarded(path: Path, found: Iterator[_Found]) -> Iterator[_Found]:
    """Yields the same values; errors become one line of InputError that names the file."""
    try:
        yield from found
    except InputError:
        raise
    except NotUTF8 as error:
        unpacked = " of the unpacked data" if path.suffix == ".gz" else ""
        raise InputError(f"{path} is not UTF-8 text: {error}{unpacked}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be unpacked: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _text(path: Path, form: Form, at: dict[str, Any]) -> Iterator[_Found]:
    dropped: Counter[str] = Counter()
    with Opened(path, at.get("byte", 0)) as file:
        for part in read_text(file, form.separator, at, drop=form.undecodable == "drop"):
            at = part.at
            if part.text is None:
                dropped[NOT_UTF8] += 1
                continue
            yield _Found(part.text, part.ends, at, file.share, dict(dropped))
            dropped.clear()
        if dropped:
            yield _Found("", False, at, 1.0, dict(dropped))


def _json_lines(path: Path, form: Form, at: dict[str, Any]) -> Iterator[_Found]:
    dropped: Counter[str] = Counter()
    number = at.get("line", 0)
    with Opened(path, at.get("byte", 0)) as file:
        offset = file.start
        longest = limit("MDLM_MAX_DOCUMENT")
        while line := file.binary.readline(longest + 1):
            number, begin, offset = number + 1, offset, offset + len(line)
            check_within("MDLM_MAX_DOCUMENT", len(line), f"{path}:{number}: a line")
            try:
                text = file.decode(line, begin)
                if not text.strip():
                    continue
                text = read_json_line(text, form.text_field, f"{path}:{number}")
            except (NotUTF8, LoneSurrogate, NullText) as error:
                if form.undecodable != "drop":
                    raise
                dropped[NULL if isinstance(error, NullText) else NOT_UTF8] += 1
                continue
            yield _Found(text, True, {"byte": offset, "line": number}, file.share, dict(dropped))
            dropped.clear()
        if dropped:
            yield _Found("", False, {"byte": offset, "line": number}, 1.0, dict(dropped))


class LoneSurrogate(InputError):
    """A JSON text that cannot be encoded as UTF-8."""


class NullText(InputError):
    """A document that is null."""

    def __init__(self, where: str, text_field: str):
        super().__init__(
            f"{where}: {text_field!r} is null, not text: take it out, or leave out such documents "
            "with undecodable='drop'"
        )


def json_object(
    line: str, where: str, used: str, whole: Callable[[str], Any] = lambda digits: 0
) -> dict[str, Any]:
    """Returns the object in a line of a `.jsonl` file.

    `where` is FILE:LINE, and `used` names the fields that are used, for errors. Whole numbers
    become what `whole` returns for their digits, however many these are: by default 0, where none
    is used. Raises InputError if it is none.
    """
    try:
        entry = json.loads(line, parse_int=whole)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise InputError(
            f"{where}: a field is nested too deeply to be read: take out fields other than {used}"
        ) from error
    if not isinstance(entry, dict):
        raise InputError(f"{where}: {type(entry).__name__}, must be a JSON object")
    return entry


def read_json_line(line: str, text_field: str, where: str) -> str:
    """Returns the text of one line of a `.jsonl` file; `where` is FILE:LINE, for errors."""
    entry = json_object(line, where, repr(text_field))
    if text_field not in entry:
        raise InputError(f"{where}: no field {text_field!r}, only {', '.join(sorted(entry))}")
    text = entry[text_field]
    if text is None:
        raise NullText(where, text_field)
    if not isinstance(text, str):
        raise InputError(f"{where}: {text_field!r} is {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LoneSurrogate(f"{where}: {text_field!r} has half a surrogate pair") from error
    return text


def _is_text(kind: Any) -> bool:
    import pyarrow.types

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def check_expansion(path: Path, size: int, there: int) -> None:
    """Raises InputError if a file of `size` bytes holds too much text, of `there` bytes."""
    most = limit("MDLM_MAX_EXPANSION")
    if there > max(FREELY, most * size):
        raise InputError(
            f"{path} expands to more than {most} times its size; if you trust it, raise the limit:"
            f" MDLM_MAX_EXPANSION={10 * most}"
        )


def _parquet(path: Path, form: Form, at: dict[str, Any]) -> Iterator[_Found]:
    import pyarrow
    from pyarrow import parquet

    name, dropped, row = form.text_field, Counter[str](), 0
    try:
        file = parquet.ParquetFile(path)
        if name in file.schema_arrow.names and _is_text(file.schema_arrow.field(name).type):
            file.close()  # a text that occurs often is held once
            file = parquet.ParquetFile(path, read_dictionary=[name])
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read: {reason}") from error
    with file:
        total = file.metadata.num_rows
        groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
        check_expansion(path, path.stat().st_size, sum(g.total_byte_size for g in groups))
        if not total:
            raise EmptyFile(f"{path} is empty")
        if name not in file.schema_arrow.names:
            there = ", ".join(file.schema_arrow.names)
            raise InputError(f"{path}: no field {name!r}, only {there}")
        start = at.get("row", 0)
        for group in range(file.num_row_groups):
            if row + file.metadata.row_group(group).num_rows <= start:
                row += file.metadata.row_group(group).num_rows
                continue
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=[name]):
                for value in batch.column(0):
                    row += 1
                    if row <= start:
                        continue
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        if form.undecodable != "drop":
                            raise InputError(
                                f"{path}: {name!r} of row {row - 1} is not UTF-8 text: byte "
                                f"0x{error.object[error.start]:02x} at offset {error.start}"
                            ) from error
                        dropped[NOT_UTF8] += 1
                        continue
                    if text is None:
                        if form.undecodable != "drop":
                            raise NullText(f"{path}, row {row - 1}", name)
                        dropped[NULL] += 1
                        continue
                    if not isinstance(text, str):
                        kind = type(text).__name__
                        raise InputError(f"{path}: {name!r} of row {row - 1} is {kind}, not text")
                    yield _Found(text, True, {"row": row}, row / total, dict(dropped))
                    dropped.clear()
        if dropped:
            yield _Found("", False, {"row": row}, 1.0, dict(dropped))


READERS = {".txt": _text, ".jsonl": _json_lines, ".parquet": _parquet}
