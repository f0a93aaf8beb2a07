"""The files of a token store as arrays: local files memory-mapped, remote ones read in pieces.

Local files are mapped whole. Remote files (on any file system that fsspec supports) are fetched in
pieces on demand, the pieces of one read in parallel, and kept in a local cache:
`$XDG_CACHE_HOME/mdlm/stores` (`~/.cache/mdlm/stores`). The cache is keyed by the checksum of the
whole file, so a file is never mistaken for another of the same name. After a pass over a split,
the cache has all of it; the folder may be deleted at any time.
"""

import abc
import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from mdlm.data.store.location import opened
from mdlm.errors import InputError
from mdlm.files import cache_folder

PIECE = 2**20
"""Bytes of a piece of a remote file."""
TOGETHER = 64
"""Pieces fetched in parallel."""
TRIES = 5
WAIT = 1.0
"""Seconds before the second try; the wait doubles with each further try."""
OPEN = 512
"""Maximum number of mapped files."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredFile:
    """A file of a store, an array of one dtype; size and SHA-256 are those of the manifest."""

    name: str
    dtype: np.dtype
    bytes: int
    sha256: str


Piece = tuple[StoredFile, int | None]
"""A file and the number of a piece of it, from 0; None for the whole file."""


class ShardFiles(abc.ABC):
    """Files of a store in pieces of `piece` bytes, the last of which may be shorter."""

    piece: int

    def __init__(self):
        self._mapped = functools.lru_cache(maxsize=OPEN)(self._map)

    @abc.abstractmethod
    def need(self, pieces: Iterable[Piece]) -> None:
        """Makes these pieces available locally. Raises InputError if one cannot be read."""

    @abc.abstractmethod
    def path(self, piece: Piece) -> Path:
        """Returns the local path of an available piece."""

    def array(self, piece: Piece) -> np.ndarray:
        """Returns an available piece, read-only. Raises InputError if it cannot be read."""
        return self._mapped(piece)

    def whole(self, file: StoredFile) -> np.ndarray:
        """Returns a whole file. Raises InputError if it cannot be read."""
        if file.bytes == 0:
            return np.empty(0, file.dtype)  # an empty file cannot be mapped
        self.need([(file, None)])
        return self.array((file, None))

    def size(self, piece: Piece) -> int:
        """Returns the size of a piece in bytes."""
        file, number = piece
        return file.bytes if number is None else min(self.piece, file.bytes - number * self.piece)

    def _map(self, piece: Piece) -> np.ndarray:
        path, dtype = self.path(piece), piece[0].dtype
        try:
            mapped = np.memmap(path, dtype, mode="r", shape=(self.size(piece) // dtype.itemsize,))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return np.asarray(mapped)


class LocalFiles(ShardFiles):
    """Local files. One piece is the whole file."""

    piece = 2**62

    def __init__(self, folder: str):
        super().__init__()
        self.folder = Path(folder)

    def need(self, pieces: Iterable[Piece]) -> None:
        pass

    def path(self, piece: Piece) -> Path:
        return self.folder / piece[0].name


class RemoteFiles(ShardFiles):
    """Remote files; pieces are fetched into the cache folder on demand."""

    def __init__(self, fs: Any, folder: str, url: str):
        super().__init__()
        self.fs, self.folder, self.url, self.piece = fs, folder, url, PIECE
        cache = cache_folder("stores")
        if cache is None:
            raise InputError(f"{url}: no home folder to keep it in; set XDG_CACHE_HOME to a folder")
        self.cache = cache

    def path(self, piece: Piece) -> Path:
        file, number = piece
        name = "whole" if number is None else f"{number:06d}-of-{self.piece}"
        return self.cache / file.sha256 / name

    def need(self, pieces: Iterable[Piece]) -> None:
        missing = [piece for piece in dict.fromkeys(pieces) if not self._is_there(piece)]
        for start in range(0, len(missing), TOGETHER):
            self._fetch(missing[start : start + TOGETHER])

    def _is_there(self, piece: Piece) -> bool:
        try:
            return os.stat(self.path(piece)).st_size == self.size(piece)
        except OSError:
            return False

    def _fetch(self, pieces: list[Piece]) -> None:
        for attempt in range(TRIES):
            paths = [f"{self.folder}/{file.name}" for file, _ in pieces]
            starts = [(number or 0) * self.piece for _, number in pieces]
            ends = [at + self.size(piece) for at, piece in zip(starts, pieces, strict=True)]
            found = self.fs.cat_ranges(paths, starts, ends, on_error="return")
            failed = []
            for piece, data in zip(pieces, found, strict=True):
                if isinstance(data, FileNotFoundError):
                    raise InputError(f"{self.url}: {piece[0].name} is missing") from data
                if isinstance(data, BaseException):
                    failed.append((piece, data))
                elif len(data) != self.size(piece):
                    raise InputError(f"{self.url}: {piece[0].name} is truncated")
                else:
                    self._keep(piece, data)
            if not failed:
                return
            (file, _), error = failed[0]
            if attempt == TRIES - 1:
                raise InputError(
                    f"{self.url}: {file.name} cannot be read ({type(error).__name__}: {error}), "
                    f"tried {TRIES} times; fetched pieces are kept, run the command again"
                ) from error
            pieces = [piece for piece, _ in failed]
            time.sleep(WAIT * 2**attempt)

    def _keep(self, piece: Piece, data: bytes) -> None:
        path = self.path(piece)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            os.replace(draft, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise InputError(
                f"{path.parent}: cannot write data fetched from {self.url} ({error}); "
                "set XDG_CACHE_HOME to another folder"
            ) from error


def files_of(url: str) -> ShardFiles:
    """Returns the files of the store at `url`."""
    fs, folder = opened(url)
    return LocalFiles(folder) if isinstance(fs, LocalFileSystem) else RemoteFiles(fs, folder, url)
