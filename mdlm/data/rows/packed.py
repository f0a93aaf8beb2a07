"""Rows cut from a stream of tokens: wrapped, or one document each.

Rows are read from the stream on demand: the memory of a row set does not grow with the stream.
"""

import functools

import numpy as np
from jaxtyping import Int32, Int64

from mdlm.data.rows.base import Rows, RowSet
from mdlm.data.rows.token_stream import TokenStream
from mdlm.data.tokens.special_tokens import ends, padding, storage
from mdlm.types import Vocab


class WrappedRows(RowSet):
    """Row i has the `inside` tokens of the stream from position i * inside (see `packing.Wrap`).

    If fewer tokens remain at the end, they form a padded row if `keeps_rest`.
    """

    def __init__(
        self,
        stream: TokenStream,
        vocab: Vocab,
        *,
        length: int,
        row_specials: bool,
        keeps_rest: bool,
        segments: bool,
    ):
        self.stream, self.vocab, self.length = stream, vocab, length
        self.row_specials, self.keeps_rest, self.segments = row_specials, keeps_rest, segments
        self.inside = length - 2 if row_specials else length
        self.full, self.rest = divmod(stream.total, self.inside)

    @property
    def is_padded(self) -> bool:
        return self.rest > 0 and self.keeps_rest

    def __len__(self) -> int:
        return self.full + self.is_padded

    @property
    def _kept_eos(self) -> int:
        """Number of documents whose EOS is in a row."""
        if self.stream.eos is None:
            return 0
        if self.is_padded:
            return self.stream.documents
        return int(self.stream.ended(np.array([self.full * self.inside], np.int64))[0])

    @property
    def placed(self) -> int:
        return self.stream.total - (0 if self.is_padded else self.rest) - self._kept_eos

    @property
    def dropped(self) -> int:
        if self.is_padded:
            return 0
        lost = 0 if self.stream.eos is None else self.stream.documents - self._kept_eos
        return self.rest - lost

    @property
    def inserted(self) -> dict[int, int]:
        found: dict[int, int] = {}
        if self.stream.eos is not None:
            found[self.stream.eos] = self._kept_eos - self.stream.documents
        if self.row_specials:
            for token in ends(self.vocab):
                found[token] = found.get(token, 0) + len(self)
        return found

    def loss_tokens(self) -> int:
        short = self.rest + self.length - self.inside if self.is_padded else 0
        return self.full * self.length + short

    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        self.check(at)
        inside, first = self.inside, 1 if self.row_specials else 0
        short = at == self.full
        tokens = np.empty((len(at), self.length), storage(self.vocab))
        is_valid = np.ones(tokens.shape, bool)
        if self.row_specials:
            tokens[:, 0], tokens[:, -1] = ends(self.vocab)
        body = tokens[:, first : first + inside]
        body[~short] = self.stream.read(at[~short] * inside, inside)
        if short.any():
            rest, start = self.rest, np.array([self.full * inside], np.int64)
            tokens[short, first : first + rest] = self.stream.read(start, rest)
            tokens[short, first + rest :] = padding(self.vocab, is_seen=False)
            if self.row_specials:
                tokens[short, first + rest] = ends(self.vocab)[1]
            is_valid[short, first + rest + first :] = False
        return Rows(
            tokens=tokens,
            loss_mask=is_valid.copy(),
            is_valid=is_valid,
            segment_ids=self._segments(at) if self.segments else None,
        )

    def _segments(self, at: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, "n l"]:
        """Returns, for each token, the number of its document within the row.

        Documents without a token in the row are not counted.
        """
        starts = at * self.inside
        stops = np.minimum(starts + self.inside, self.stream.total)
        # A document begins where the one before it ends; only those inside the row start segments.
        before = self.stream.ended(starts)
        count = self.stream.ended(stops - 1) - before
        row = np.repeat(np.arange(len(at), dtype=np.int64), count)
        number = np.arange(len(row), dtype=np.int64)
        number += np.repeat(before - (np.cumsum(count) - count), count)
        begins = np.zeros((len(at), self.length), np.int32)
        first = 1 if self.row_specials else 0
        begins[row, first + self.stream.ends(number) - starts[row]] = 1
        return np.cumsum(begins, axis=1, dtype=np.int32)


class PaddedRows(RowSet):
    """Row i has the i-th document that has tokens (see `packing.Pad`).

    The tokens in rows are counted on first use, from the lengths of all documents.
    """

    def __init__(
        self, stream: TokenStream, vocab: Vocab, *, length: int, specials: bool, sees_padding: bool
    ):
        self.stream, self.vocab, self.length = stream, vocab, length
        self.specials, self.sees_padding = specials, sees_padding
        self.room = length - 2 if specials else length

    def __len__(self) -> int:
        return self.stream.filled

    @functools.cached_property
    def _own(self) -> tuple[int, int]:
        """The documents' own tokens: those in rows, and all."""
        kept = total = 0
        for sizes in self.stream.sizes():
            kept += int(np.minimum(sizes, self.room).sum())
            total += int(sizes.sum())
        return kept, total

    @property
    def placed(self) -> int:
        return self._own[0]

    @property
    def dropped(self) -> int:
        return self._own[1] - self._own[0]

    @functools.cached_property
    def is_padded(self) -> bool:
        if self.sees_padding:
            return False
        return any(((n > 0) & (n < self.room)).any() for n in self.stream.sizes())

    @property
    def inserted(self) -> dict[int, int]:
        found: dict[int, int] = {}
        if self.stream.eos is not None:
            found[self.stream.eos] = -self.stream.documents
        if self.specials:
            for token in ends(self.vocab):
                found[token] = found.get(token, 0) + len(self)
        return found

    def loss_tokens(self) -> int:
        return self.placed + len(self) * (self.length - self.room)

    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        self.check(at)
        first = 1 if self.specials else 0
        starts, stops = self.stream.spans(self.stream.with_tokens(at))
        kept = np.minimum(stops - starts, self.room)
        # All windows have one width, so near the end of the stream they begin before the document.
        width = min(self.room, self.stream.total)
        shift = np.maximum(starts + width - self.stream.total, 0)
        found = self.stream.read(starts - shift, width)
        if shift.any():
            position = np.arange(width, dtype=np.int64)[None, :] + shift[:, None]
            found = np.take_along_axis(found, np.minimum(position, width - 1), axis=1)
        position = np.arange(self.length, dtype=np.int64)[None, :]
        pad = padding(self.vocab, is_seen=self.sees_padding)
        tokens = np.full((len(at), self.length), pad, storage(self.vocab))
        inside = position[:, :width] < kept[:, None]
        tokens[:, first : first + width][inside] = found[inside]
        if self.specials:
            bos, eos = ends(self.vocab)
            tokens[:, 0] = bos
            tokens[np.arange(len(tokens)), first + kept] = eos
        loss_mask = position < (kept + 2 * first)[:, None]
        is_valid = np.ones_like(loss_mask) if self.sees_padding else loss_mask.copy()
        return Rows(tokens=tokens, loss_mask=loss_mask, is_valid=is_valid)
