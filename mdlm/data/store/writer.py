"""Writes the shards of a token store, and verifies finished ones by their checksums."""

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Int64, Integer

from mdlm.data.store.location import opened
from mdlm.data.store.manifest import REMEDY, Manifest, Shard, SplitRecord, counts_name
from mdlm.data.store.text_digest import TextDigest
from mdlm.data.text.chunks import Chunk, Encoded
from mdlm.data.tokens.tokenizer import Report
from mdlm.errors import InputError
from mdlm.files import Lock, check_contained

CHUNK = 2**22
"""Bytes read at a time."""


class Folder:
    """The folder of a store: local, or on any file system that fsspec can write to."""

    def __init__(self, url: str):
        self.url = url
        self.fs, self.path = opened(url)
        self.local = Path(self.path) if isinstance(self.fs, LocalFileSystem) else None

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(f"{self.path}/{name}"))

    def names(self) -> list[str]:
        """Returns the names of the files in the folder; none if it does not exist."""
        if not self.fs.exists(self.path):
            return []
        return sorted(name.rsplit("/", 1)[-1] for name in self.fs.ls(self.path, detail=False))

    def open(self, name: str) -> Any:
        return self.fs.open(f"{self.path}/{name}", "rb")

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(f"{self.path}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, atomically in a local folder."""
        self.fs.makedirs(self.path, exist_ok=True)
        if self.local is None:
            self.fs.pipe_file(f"{self.path}/{name}", data)
            return
        part = self.local / f".{name}.part"
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.local / name)

    def remove_parts(self) -> None:
        """Removes unfinished files of an interrupted writer."""
        for part in self.local.glob(".*.part") if self.local else ():
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks a local folder against other processes.

        Raises InputError if another process has locked it.
        """
        if self.local is None:
            yield
            return
        self.local.mkdir(parents=True, exist_ok=True)
        check_contained(self.local)
        with Lock(self.local / ".lock", "being prepared"):
            try:
                yield
            finally:
                if self.names() == [".lock"]:  # nothing was written
                    shutil.rmtree(self.local)


class ShardWriter:
    """Writes one shard to temporary files, beside their final names or, for a remote store, in a
    local folder. `finish` moves or uploads them."""

    def __init__(self, folder: Folder, name: str):
        self.folder, self.name = folder, name
        self.tokens = self.documents = self.empty = self.bytes = self.characters = 0
        self._spool = None if folder.local else Path(tempfile.mkdtemp(prefix="mdlm-"))
        where = folder.local or self._spool
        assert where is not None
        where.mkdir(parents=True, exist_ok=True)
        self._parts = {kind: where / f".{name}.{kind}.part" for kind in ("bin", "ends")}
        self._files = {kind: part.open("wb") for kind, part in self._parts.items()}
        self._text = TextDigest()
        self._sums = {kind: hashlib.sha256() for kind in self._parts}

    def add(self, encoded: Encoded, chunk: Chunk, empty: int) -> None:
        """Appends the tokens of the next chunk; `empty` of its documents have no tokens."""
        for number, text in enumerate(chunk.texts, 1):
            self._text.add(text)
            if number < len(chunk.texts) or not chunk.open:
                self._text.end()
        ends = (self.tokens + encoded.ends).astype("<u8")
        for kind, values in (("bin", encoded.tokens), ("ends", ends)):
            self._files[kind].write(memoryview(values).cast("B") if values.size else b"")
            self._sums[kind].update(memoryview(values).cast("B") if values.size else b"")
        self.tokens += len(encoded.tokens)
        self.documents += len(ends)
        self.empty += empty
        self.bytes += encoded.bytes
        self.characters += chunk.characters

    def finish(self) -> Shard:
        """Moves the files to their final names and returns the shard's record."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for kind, part in self._parts.items():
            if self.folder.local:
                os.replace(part, self.folder.local / f"{self.name}.{kind}")
            else:
                self.folder.fs.put_file(str(part), f"{self.folder.path}/{self.name}.{kind}")
        if self.folder.local:
            handle = os.open(self.folder.local, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        self.abandon()
        return Shard(
            name=self.name,
            tokens=self.tokens,
            documents=self.documents,
            empty=self.empty,
            bytes=self.bytes,
            characters=self.characters,
            sha256=self._sums["bin"].hexdigest(),
            ends_sha256=self._sums["ends"].hexdigest(),
            text_sha256=self._text.hexdigest(),
        )

    def abandon(self) -> None:
        """Removes the temporary files."""
        for kind, part in self._parts.items():
            with contextlib.suppress(OSError):  # after a failed write, closing fails too
                self._files[kind].close()
            part.unlink(missing_ok=True)
        if self._spool:
            shutil.rmtree(self._spool, ignore_errors=True)


@dataclass(kw_only=True)
class Tally:
    """Running counts of the tokens of a split."""

    counts: Int64[np.ndarray, " v"]
    since: int = 0  # tokens after the last end of a document

    def count(self, tokens: Integer[np.ndarray, " n"]) -> None:
        self.counts += np.bincount(tokens, minlength=len(self.counts))

    def add(self, encoded: Encoded, eos: int | None) -> int:
        """Counts the next tokens; returns how many documents among them are empty (EOS only)."""
        self.count(encoded.tokens)
        sizes = np.diff(encoded.ends, prepend=np.int64(-self.since))
        last = int(encoded.ends[-1]) if len(encoded.ends) else -self.since
        self.since = len(encoded.tokens) - last
        return int((sizes == (eos is not None)).sum())


def verify(folder: Folder, manifest: Manifest, split: str, report: Report | None = None) -> Tally:
    """Reads all finished shards of a split and counts their tokens.

    Raises InputError if a file is missing or differs from what was written.
    """
    record = manifest.splits.get(split, SplitRecord())
    tally = Tally(counts=np.zeros(manifest.vocab_size, np.int64))
    done, total = 0, record.total("tokens")
    for shard in record.shards:
        ends = np.frombuffer(_checked(folder, f"{shard.name}.ends", shard.ends_sha256), "<u8")
        for tokens in _tokens(folder, manifest, shard):
            tally.count(tokens)
            done += len(tokens)
            if report:
                report(f"verifying {split}, tokens", done, total)
        last = int(ends[-1]) if len(ends) else -tally.since
        tally.since = shard.tokens - last
    return tally


def _tokens(folder: Folder, manifest: Manifest, shard: Shard) -> Iterator[Any]:
    """Yields the tokens of a shard in parts. Raises InputError if the file is damaged."""
    name, state, kind = f"{shard.name}.bin", hashlib.sha256(), manifest.stored_dtype
    _check_size(folder, name, shard.tokens * kind.itemsize)
    with folder.open(name) as file:
        while data := file.read(CHUNK):
            state.update(data)
            tokens = np.frombuffer(data, kind)
            if tokens.max(initial=0) >= manifest.vocab_size:
                raise damaged(folder, name, f"has token {tokens.max()}, outside the vocabulary of "
                              f"{manifest.vocab_size}")  # fmt: skip
            yield tokens
    if state.hexdigest() != shard.sha256:
        raise damaged(folder, name, "has another checksum than the manifest")


def _checked(folder: Folder, name: str, checksum: str) -> bytes:
    _check_size(folder, name, None)
    data = folder.read(name)
    if hashlib.sha256(data).hexdigest() != checksum:
        raise damaged(folder, name, "has another checksum than the manifest")
    return data


def _check_size(folder: Folder, name: str, size: int | None) -> None:
    if not folder.exists(name):
        raise damaged(folder, name, "is missing")
    there = folder.fs.size(f"{folder.path}/{name}")
    if size not in (None, there):
        raise damaged(folder, name, f"has {there:,} bytes, the manifest has {size:,}")


def damaged(folder: Folder, name: str, what: str) -> InputError:
    return InputError(f"{folder.url}: {name} {what}: {REMEDY}")


def write_counts(folder: Folder, split: str, counts: Int64[np.ndarray, " v"]) -> None:
    """Writes how often each token occurs in a split, unless the file has these counts already."""
    data = io.BytesIO()
    np.save(data, counts)
    name = counts_name(split)
    if not folder.exists(name) or folder.read(name) != data.getvalue():
        folder.write(name, data.getvalue())
