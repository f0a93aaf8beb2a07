"""Reads one text file: decompressed, decoded and split into documents, piece by piece."""

import codecs
import gzip
import io
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mdlm.errors import InputError

log = logging.getLogger(__name__)

PIECE = 2**20
"""Characters of a document per piece."""
CHUNK = 2**20
"""Bytes read at a time."""
MARK = codecs.BOM_UTF8


class EmptyFile(InputError):
    """A file without text."""


class NotUTF8(ValueError):
    """A byte that is not UTF-8, and its offset in the decompressed file."""

    def __init__(self, error: UnicodeDecodeError, begin: int):
        self.byte, self.offset = error.object[error.start], begin + error.start
        super().__init__(f"byte 0x{self.byte:02x} at offset {self.offset}")


class Opened:
    """A file's decompressed bytes from offset `at` on, without a byte order mark at the beginning.

    Bytes behind the packed data of a `.gz` file are left out, and a warning says so. Raises
    EmptyFile if the file is empty.
    """

    def __init__(self, path: Path, at: int):
        self.path = path
        self._raw = path.open("rb")
        self.binary: IO[bytes] = self._raw
        try:
            self._size = max(path.stat().st_size, 1)
            if path.suffix == ".gz":
                self.binary = io.BufferedReader(_Unpacked(path, self._raw))
            if not at:
                at = len(MARK) if self.binary.read(len(MARK)) == MARK else 0
                self.binary.seek(at)
                if not self.binary.read(1):
                    raise EmptyFile(f"{path} is empty")
            self.binary.seek(at)
        except BaseException:
            self._raw.close()
            raise
        self.start = self.end = at

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_) -> None:
        self.binary.close()
        self._raw.close()

    @property
    def share(self) -> float:
        """The fraction of the file that has been read."""
        return min(self._raw.tell() / self._size, 1.0)

    def decode(self, data: bytes, begin: int) -> str:
        """Decodes bytes that begin at offset `begin`. Raises NotUTF8 if they are not UTF-8."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise NotUTF8(error, begin) from error

    def characters(self, errors: str) -> Iterator[str]:
        """Yields the text in parts of any size. Raises NotUTF8 if it is not UTF-8."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        while True:
            data = self.binary.read(CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise NotUTF8(error, self.end - pending) from error
            self.end += len(data)
            if not data:
                if text:
                    yield text
                return
            yield text


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a gzip file, to the end of its last member."""

    def __init__(self, path: Path, raw: IO[bytes]):
        self._path, self._file, self._told = path, gzip.GzipFile(fileobj=raw), False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self._file.read1(len(buffer))
        except gzip.BadGzipFile as error:
            # Only this one is raised between members; others mean that data are damaged.
            if not str(error).startswith("Not a gzipped file") or not self._file.tell():
                raise
            if not self._told:
                log.warning("%s: what follows the packed data is left out", self._path)
            data, self._told = b"", True
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def check_utf8(text: str, what: str) -> None:
    """Raises InputError if text from outside has a byte that is not UTF-8, or half a character.

    `what` names the text in the message. Command lines keep such bytes as lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = len(text[: error.start].encode("utf-8", "surrogateescape"))
        code = ord(text[error.start])
        which = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        raise InputError(f"{what} is not UTF-8: {which} at offset {at}") from error


@dataclass(frozen=True)
class Part:
    """Text of a document; `text` is None for a whole document that cannot be decoded."""

    text: str | None
    ends: bool
    at: dict[str, Any]


def read_text(
    file: Opened, separator: str | None, at: dict[str, Any], *, drop: bool
) -> Iterator[Part]:
    """Yields the documents of a `.txt` file after `at`, which is empty or `Part.at`.

    With a separator, documents of white space alone are skipped. With `drop`, the file is read
    twice: a document's first piece can be given only once its last is known to be UTF-8.
    """
    number, inside = at.get("document", 0), at.get("inside", False)
    if at and not inside and separator is None:
        return
    bad = frozenset[int]()
    if drop:
        with Opened(file.path, 0) as whole:
            bad = undecodable(whole, separator)
    offset, held = file.start, ""
    chunks = file.characters("surrogateescape" if drop else "strict")
    for text, ends, gap in split_documents(chunks, separator):
        offset += len((text + gap).encode("utf-8", "surrogateescape"))
        text, held = held + text, ""
        shown = inside or separator is None or bool(text.strip())
        is_bad = number in bad
        number += ends
        if is_bad and ends:
            yield Part(None, True, {"byte": offset, "document": number, "inside": False})
        elif shown and not is_bad:
            inside = not ends
            yield Part(text, ends, {"byte": offset, "document": number, "inside": inside})
        elif not ends:
            held = text if not is_bad else ""


def undecodable(file: Opened, separator: str | None) -> frozenset[int]:
    """Returns the numbers of the documents that contain bytes which are not UTF-8."""
    bad, number = set(), 0
    for text, ends, _ in split_documents(file.characters("surrogateescape"), separator):
        if any("\udc80" <= c <= "\udcff" for c in ("" if text.isascii() else set(text))):
            bad.add(number)
        number += ends
    return frozenset(bad)


def split_documents(
    chunks: Iterator[str], separator: str | None
) -> Iterator[tuple[str, bool, str]]:
    """Yields text of documents, whether the document ends there, and the separator after it."""
    held, at, reach = "", 0, len(separator or "")
    for chunk in itertools.chain(chunks, [None]):
        if chunk is not None:
            held, at = held[at:] + chunk, 0
        while True:
            end = held.find(separator, at, at + PIECE + reach) if separator else -1
            if end >= 0 and separator:
                yield held[at:end], True, separator
                at = end + reach
            elif len(held) - at > PIECE + (reach if chunk is not None else 0):
                yield held[at : at + PIECE], False, ""
                at += PIECE
            else:
                break
    yield held[at:], True, ""
