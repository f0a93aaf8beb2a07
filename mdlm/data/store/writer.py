"""Writing the shards of a token store, and reading them back to see that they are whole."""

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

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Int64, Integer

from mdlm.data.store.manifest import REMEDY, Manifest, Shard, SplitRecord, counts_name
from mdlm.data.text.chunks import Encoded
from mdlm.data.tokens.tokenizer import Report
from mdlm.errors import InputError

CHUNK = 2**22
"""Bytes read at a time."""


class Folder:
    """The folder of a store: on this machine's disks, or anywhere that fsspec writes to."""

    def __init__(self, url: str):
        self.url = url
        self.fs, self.path = fsspec.core.url_to_fs(url)
        self.local = Path(self.path) if isinstance(self.fs, LocalFileSystem) else None

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(f"{self.path}/{name}"))

    def names(self) -> list[str]:
        """Names of the files in it; none where there is no such folder."""
        if not self.fs.exists(self.path):
            return []
        return sorted(name.rsplit("/", 1)[-1] for name in self.fs.ls(self.path, detail=False))

    def open(self, name: str) -> Any:
        return self.fs.open(f"{self.path}/{name}", "rb")

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(f"{self.path}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, at once or not at all."""
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
        """Removes what an interrupted writer left unfinished."""
        for part in self.local.glob(".*.part") if self.local else ():
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes of this machine from writing into it at the same time."""
        if self.local is None:
            yield
            return
        import fcntl

        self.local.mkdir(parents=True, exist_ok=True)
        with (self.local / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{self.url}: another process is preparing it") from error
            try:
                yield
            finally:
                if self.names() == [".lock"]:  # nothing came of it
                    shutil.rmtree(self.local)


class ShardWriter:
    """One shard, unseen until it is finished: beside its place, or spooled for a far one."""

    def __init__(self, folder: Folder, name: str):
        self.folder, self.name = folder, name
        self.tokens = self.documents = self.empty = self.bytes = self.characters = 0
        self._spool = None if folder.local else Path(tempfile.mkdtemp(prefix="mdlm-"))
        where = folder.local or self._spool
        assert where is not None
        where.mkdir(parents=True, exist_ok=True)
        self._parts = {kind: where / f".{name}.{kind}.part" for kind in ("bin", "ends")}
        self._files = {kind: part.open("wb") for kind, part in self._parts.items()}
        self._sums = {kind: hashlib.sha256() for kind in self._parts}

    def add(self, encoded: Encoded, characters: int, empty: int) -> None:
        """Tokens of the next text, and how many of its documents are empty."""
        ends = (self.tokens + encoded.ends).astype("<u8")
        for kind, values in (("bin", encoded.tokens), ("ends", ends)):
            self._files[kind].write(memoryview(values).cast("B") if values.size else b"")
            self._sums[kind].update(memoryview(values).cast("B") if values.size else b"")
        self.tokens += len(encoded.tokens)
        self.documents += len(ends)
        self.empty += empty
        self.bytes += encoded.bytes
        self.characters += characters

    def finish(self) -> Shard:
        """Puts the shard in its place; what it is."""
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
        )

    def abandon(self) -> None:
        """Leaves nothing of what is not finished."""
        for kind, part in self._parts.items():
            with contextlib.suppress(OSError):  # what could not be written cannot be flushed
                self._files[kind].close()
            part.unlink(missing_ok=True)
        if self._spool:
            shutil.rmtree(self._spool, ignore_errors=True)


@dataclass(kw_only=True)
class Tally:
    """What the tokens of a split add up to."""

    counts: Int64[np.ndarray, " v"]
    since: int = 0  # tokens behind the last end

    def count(self, tokens: Integer[np.ndarray, " n"]) -> None:
        self.counts += np.bincount(tokens, minlength=len(self.counts))

    def add(self, encoded: Encoded, eos: int | None) -> int:
        """Tokens that follow those before; how many documents among them have but their EOS."""
        self.count(encoded.tokens)
        sizes = np.diff(encoded.ends, prepend=np.int64(-self.since))
        last = int(encoded.ends[-1]) if len(encoded.ends) else -self.since
        self.since = len(encoded.tokens) - last
        return int((sizes == (eos is not None)).sum())


def verify(folder: Folder, manifest: Manifest, split: str, report: Report | None = None) -> Tally:
    """Reads all finished shards of a split. InputError where one is not what it was."""
    record = manifest.splits.get(split, SplitRecord())
    tally = Tally(counts=np.zeros(manifest.vocab_size, np.int64))
    done, total = 0, record.total("tokens")
    for shard in record.shards:
        ends = np.frombuffer(_checked(folder, f"{shard.name}.ends", shard.ends_sha256), "<u8")
        for tokens in _tokens(folder, manifest, shard):
            tally.count(tokens)
            done += len(tokens)
            if report:
                report(f"verifying {split} tokens", done, total)
        last = int(ends[-1]) if len(ends) else -tally.since
        tally.since = shard.tokens - last
    return tally


def _tokens(folder: Folder, manifest: Manifest, shard: Shard) -> Iterator[Any]:
    """The tokens of a shard in chunks; at the end they are known to be the right ones."""
    name, state, kind = f"{shard.name}.bin", hashlib.sha256(), manifest.stored_dtype
    _check_size(folder, name, shard.tokens * kind.itemsize)
    with folder.open(name) as file:
        while data := file.read(CHUNK):
            state.update(data)
            tokens = np.frombuffer(data, kind)
            if tokens.max(initial=0) >= manifest.vocab_size:
                raise damaged(folder, name, f"holds token {tokens.max()}, and the vocabulary has "
                              f"{manifest.vocab_size}")  # fmt: skip
            yield tokens
    if state.hexdigest() != shard.sha256:
        raise damaged(folder, name, "has not the checksum that it was written with")


def _checked(folder: Folder, name: str, checksum: str) -> bytes:
    _check_size(folder, name, None)
    data = folder.read(name)
    if hashlib.sha256(data).hexdigest() != checksum:
        raise damaged(folder, name, "has not the checksum that it was written with")
    return data


def _check_size(folder: Folder, name: str, size: int | None) -> None:
    if not folder.exists(name):
        raise damaged(folder, name, "is missing")
    there = folder.fs.size(f"{folder.path}/{name}")
    if size not in (None, there):
        raise damaged(folder, name, f"has {there:,} bytes, not {size:,}")


def damaged(folder: Folder, name: str, what: str) -> InputError:
    return InputError(f"{folder.url}: {name} {what}: {REMEDY}")


def write_counts(folder: Folder, split: str, counts: Int64[np.ndarray, " v"]) -> None:
    """How often each token occurs in a split; a file that says so already is left alone."""
    data = io.BytesIO()
    np.save(data, counts)
    name = counts_name(split)
    if not folder.exists(name) or folder.read(name) != data.getvalue():
        folder.write(name, data.getvalue())
