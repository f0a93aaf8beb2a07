"""A split of a token store as a stream of tokens."""

import bisect
import functools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int64, Integer

from mdlm.data.rows.token_stream import TokenStream
from mdlm.data.store.manifest import REMEDY, Manifest, Shard
from mdlm.data.store.shard_files import Piece, ShardFiles, StoredFile
from mdlm.errors import InputError

ENDS = np.dtype("<u8")


class StoredStream(TokenStream):
    """A split of a store. Reading maps or fetches only the shards it needs."""

    def __init__(
        self, url: str, manifest: Manifest, shards: tuple[Shard, ...], shard_files: ShardFiles
    ):
        self.url, self.manifest, self.shards, self.files = url, manifest, shards, shard_files
        self.eos, self.dtype = manifest.eos, manifest.stored_dtype
        self._named = [files(shard, manifest) for shard in self.shards]
        self._tokens = starts(shard.tokens for shard in self.shards)
        self._documents = starts(shard.documents for shard in self.shards)
        self._filled = starts(shard.documents - shard.empty for shard in self.shards)
        self.total = int(self._tokens[-1])
        self.documents = int(self._documents[-1])
        self.filled = int(self._filled[-1])
        self._empty = functools.cache(self._empty_in)
        self._piece = self.files.piece // self.dtype.itemsize
        self._firsts = self._tokens.tolist()

    def ends(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        found = np.empty(len(numbers), np.int64)
        for k, at in by_shard(self._documents, numbers):
            found[at] = self._ends(k)[numbers[at] - self._documents[k]]
            found[at] += self._tokens[k]
        return found

    def ended(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        found = np.empty(len(positions), np.int64)
        for k, at in by_shard(self._tokens, positions):
            # With another dtype, searchsorted would copy all ends.
            local = (positions[at] - self._tokens[k]).astype(ENDS)
            found[at] = self._documents[k] + np.searchsorted(self._ends(k), local, side="right")
        return found

    def with_tokens(self, at: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        if self.filled == self.documents:
            return at
        found = np.empty(len(at), np.int64)
        for k, here in by_shard(self._filled, at):
            number = at[here] - self._filled[k]
            number += np.searchsorted(self._empty(k), number, side="right")
            found[here] = self._documents[k] + number
        return found

    def read(self, starts: Int64[np.ndarray, " n"], length: int) -> Integer[np.ndarray, "n l"]:
        if len(starts) and not 0 <= starts.min() <= starts.max() <= self.total - length:
            raise IndexError(f"{length} tokens from {starts.max()} of {self.total}")
        found = np.empty((len(starts), length), self.dtype.newbyteorder("="))
        shard = np.searchsorted(self._tokens[:-1], starts, side="right") - 1
        number, offset = np.divmod(starts - self._tokens[shard], self._piece)
        within = (offset + length <= self._piece) & (starts + length <= self._tokens[shard + 1])
        pieces = [
            (self._named[k][0], n) for k, n in zip(shard.tolist(), number.tolist(), strict=True)
        ]
        cut = [
            part
            for row in np.flatnonzero(~within).tolist()
            for part in self._parts(row, int(starts[row]), length)
        ]
        self.files.need([*pieces, *(piece for piece, *_ in cut)])
        for row, (piece, at, whole) in enumerate(
            zip(pieces, offset.tolist(), within.tolist(), strict=True)
        ):
            if whole:
                found[row] = self.files.array(piece)[at : at + length]
        for piece, at, count, row, column in cut:
            found[row, column : column + count] = self.files.array(piece)[at : at + count]
        self._check(found, starts)
        return found

    def _parts(
        self, row: int, start: int, length: int
    ) -> Iterator[tuple[Piece, int, int, int, int]]:
        """Yields the parts of a row that spans several pieces: piece, offset in it, number of
        tokens, row, column."""
        done = 0
        while done < length:
            k = bisect.bisect_right(self._firsts, start + done) - 1
            first = start + done - self._firsts[k]
            number, offset = divmod(first, self._piece)
            there = self._firsts[k + 1] - self._firsts[k] - first
            count = min(length - done, self._piece - offset, there)
            yield (self._named[k][0], number), offset, count, row, done
            done += count

    def _ends(self, k: int) -> np.ndarray:
        return self.files.whole(self._named[k][1])

    def _empty_in(self, k: int) -> Int64[np.ndarray, " n"]:
        """Returns, for each empty document of a shard, how many documents before it are not empty.

        Raises InputError if their number differs from the manifest.
        """
        first = self._documents[k]
        starts, stops = self.spans(np.arange(first, self._documents[k + 1], dtype=np.int64))
        found = np.flatnonzero(starts == stops)
        if len(found) != self.shards[k].empty:
            raise InputError(
                f"{self.url}: {self.shards[k].name}.ends has {len(found)} empty documents where "
                f"the manifest has {self.shards[k].empty}: {REMEDY}"
            )
        return found - np.arange(len(found), dtype=np.int64)

    def _check(self, found: Integer[np.ndarray, "n l"], starts: Int64[np.ndarray, " n"]) -> None:
        """Raises InputError if a token is outside the vocabulary."""
        size = self.manifest.vocab_size
        if not found.size or found.max() < size:
            return
        row, column = np.argwhere(found >= size)[0]
        k = bisect.bisect_right(self._firsts, int(starts[row] + column)) - 1
        raise InputError(
            f"{self.url}: {self.shards[k].name}.bin is damaged, it has token {found[row, column]} "
            f"outside the vocabulary of {size}: {REMEDY}"
        )


def starts(counts: Iterable[int]) -> Int64[np.ndarray, " n"]:
    """Returns where each shard's part begins, and where the last one ends."""
    return np.cumsum([0, *counts], dtype=np.int64)


def by_shard(
    bounds: Int64[np.ndarray, " n"], positions: Int64[np.ndarray, " m"]
) -> Iterator[tuple[int, Int64[np.ndarray, " k"]]]:
    """Yields each shard with the indices of the positions inside it.

    The end of the last shard counts as inside it.
    """
    shard = np.searchsorted(bounds[:-1], positions, side="right") - 1
    order = np.argsort(shard, kind="stable")
    cuts = np.flatnonzero(np.diff(shard[order])) + 1
    for at in np.split(order, cuts):
        if len(at):
            yield int(shard[at[0]]), at


def files(shard: Shard, manifest: Manifest) -> tuple[StoredFile, StoredFile]:
    """Returns the two files of a shard: its tokens, and the ends of its documents."""
    dtype = manifest.stored_dtype
    return (
        StoredFile(
            name=f"{shard.name}.bin",
            dtype=dtype,
            bytes=shard.tokens * dtype.itemsize,
            sha256=shard.sha256,
        ),
        StoredFile(
            name=f"{shard.name}.ends",
            dtype=ENDS,
            bytes=shard.documents * ENDS.itemsize,
            sha256=shard.ends_sha256,
        ),
    )
