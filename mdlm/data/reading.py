"""Reading text files: which ones a pattern names, and the documents in each."""

import glob
import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from mdlm.types import InputError


def matching_files(patterns: Iterable[str]) -> list[Path]:
    """Existing files, in the order of the patterns and by name within each."""
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            raise InputError(f"{pattern} is a folder: name its files, such as {pattern}/*.txt")
        if path.exists():
            found.append(path)
            continue
        if not glob.has_magic(pattern):
            raise InputError(f"file not found: {pattern}")
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        matches = [match for match in matches if match.is_file()]
        if not matches:
            raise InputError(f"no file matches {pattern}")
        found += matches
    return found


def read_documents(path: Path, text_field: str, separator: str | None) -> list[str]:
    """The documents of one file, by its ending."""
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending.removesuffix(".gz") not in (".txt", ".jsonl"):
        raise InputError(f"{path}: unknown ending; known are .txt and .jsonl, each also with .gz")
    text = read_text(path)
    if not text:
        raise InputError(f"{path} is empty")
    if ending.startswith(".jsonl"):
        lines = enumerate(text.split("\n"), start=1)
        return [
            read_json_line(line, text_field, f"{path}:{n}") for n, line in lines if line.strip()
        ]
    if separator is None:
        return [text]
    return [part for part in text.split(separator) if part.strip()]


def read_text(path: Path) -> str:
    """A file as it is (line ends too), without a byte order mark."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} "
            f"at offset {error.start}{' of the unpacked data' if path.suffix == '.gz' else ''}"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be unpacked: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json_line(line: str, text_field: str, place: str) -> str:
    """The text of one line of a `.jsonl` file."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(entry, dict):
        raise InputError(f"{place}: a JSON object is needed, not {type(entry).__name__}")
    if text_field not in entry:
        raise InputError(f"{place}: no field {text_field!r}, only {', '.join(sorted(entry))}")
    text = entry[text_field]
    if not isinstance(text, str):
        raise InputError(f"{place}: {text_field!r} is {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: {text_field!r} holds half a surrogate pair") from error
    return text
