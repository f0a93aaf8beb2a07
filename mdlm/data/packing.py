"""From documents of any length to rows of one length.

`Wrap` concatenates all documents, an EOS after each, and cuts the stream into rows; `Pad` gives
each document a row of its own. The choice changes the task and therefore the perplexity, so it is
part of the protocol of a number (LM1B: 27.0 padded, 31.8 wrapped for MDLM).

A packing describes how rows are cut. The rows themselves (`rows.packed`) are made on demand, from
a stream in memory or in a store.
"""

import abc
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int32

from mdlm.data.rows.base import RowSet
from mdlm.data.rows.packed import PaddedRows, WrappedRows
from mdlm.data.rows.token_stream import ArrayStream, TokenStream
from mdlm.data.tokens.special_tokens import end_of, ends, padding, storage
from mdlm.errors import InputError
from mdlm.types import Vocab


@dataclass(frozen=True, kw_only=True)
class Packing(abc.ABC):
    """How documents become rows of `length` tokens."""

    length: int

    def __post_init__(self):
        if self.length < 3:
            raise ValueError(f"length={self.length}: must be at least 3")

    @property
    @abc.abstractmethod
    def protocol(self) -> str:
        """A short description of the packing, printed with a perplexity."""

    @property
    @abc.abstractmethod
    def frame(self) -> tuple[bool, bool]:
        """Whether every row begins with BOS, and whether every (full) row ends with EOS."""

    @property
    def is_one_document(self) -> bool:
        """Whether a row is one document, so that a text is over at its EOS."""
        return False

    @property
    def hides_padding(self) -> bool:
        """Whether rows may have padding that attention leaves out, so that batches have
        `is_valid`."""
        return False

    @property
    def splits_attention(self) -> bool:
        """Whether attention stays inside each document, so that batches have `segment_ids`."""
        return False

    @property
    def has_prompts(self) -> bool:
        """Whether valid tokens outside the loss are prompts, which noise does not reach."""
        return False

    @abc.abstractmethod
    def separator(self, vocab: Vocab) -> int | None:
        """Returns the token after each document in a stream for this packing; None: no token."""

    @abc.abstractmethod
    def over(self, stream: TokenStream, vocab: Vocab) -> RowSet:
        """Returns the rows of a stream.

        Raises InputError if the stream was made for another packing, or is too short for one row.
        """

    def of(self, documents: list[Int32[np.ndarray, "..."]], vocab: Vocab) -> RowSet:
        """Returns the rows of encoded documents. Raises InputError as `over`."""
        return self.over(ArrayStream(documents, self.separator(vocab), storage(vocab)), vocab)


@dataclass(frozen=True, kw_only=True)
class Wrap(Packing):
    """Concatenated and wrapped: documents in order, an EOS after each, cut into full rows.

    With `row_specials` each row has BOS, `length - 2` tokens of the stream, and EOS (MDLM,
    arXiv:2406.07524); without, it has `length` tokens of the stream (BD3-LM's
    `insert_special_tokens: false`). All tokens count in the loss, the inserted ones too. An empty
    document leaves its EOS, as published. With `eos=False` there is no token between documents
    (text8).

    With `segments` attention stays inside each document. A document's EOS belongs to it, a row's
    BOS to the first document in the row, a row's EOS to the last.

    If the last tokens are too few for a row, they form a padded row, with `is_valid` False at the
    padding (`remainder="pad"`: every token counts once), or are dropped, as published.
    """

    row_specials: bool = True
    remainder: Literal["pad", "drop"] = "pad"
    eos: bool = True
    segments: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.remainder not in ("pad", "drop"):
            raise ValueError(f"remainder={self.remainder!r}: must be 'pad' or 'drop'")

    @property
    def protocol(self) -> str:
        rows = f"{'packed' if self.segments else 'wrapped'} rows of {self.length}"
        rows += ", attention inside documents" if self.segments else ""
        rows += ", BOS and EOS in each" if self.row_specials else ""
        rows += "" if self.eos else ", no EOS between documents"
        return rows + (", remainder dropped" if self.remainder == "drop" else "")

    @property
    def frame(self) -> tuple[bool, bool]:
        return self.row_specials, self.row_specials

    @property
    def hides_padding(self) -> bool:
        return self.remainder == "pad"

    @property
    def splits_attention(self) -> bool:
        return self.segments

    def separator(self, vocab: Vocab) -> int | None:
        return ends(vocab)[1] if self.eos else None

    def over(self, stream: TokenStream, vocab: Vocab) -> RowSet:
        due = self.separator(vocab)
        if stream.eos != due:
            there, wanted = (
                "nothing" if token is None else f"token {token}" for token in (stream.eos, due)
            )
            raise InputError(
                f"the tokens have {there} after each document, Wrap(eos={self.eos}) needs "
                f"{wanted}: use Wrap(eos={stream.eos is not None}), or prepare the text again"
            )
        if self.row_specials:
            ends(vocab)
        inside = self.length - 2 if self.row_specials else self.length
        if stream.total < inside:
            raise InputError(
                f"the text has {stream.total} tokens, too few for one row of length={self.length} "
                f"(must be at least {inside}): give more text, or train with a smaller length"
            )
        return WrappedRows(
            stream,
            vocab,
            length=self.length,
            row_specials=self.row_specials,
            keeps_rest=self.hides_padding,
            segments=self.segments,
        )


@dataclass(frozen=True, kw_only=True)
class Pad(Packing):
    """One document per row: [BOS] document [EOS], cut off at `length`, then padding.

    A document that does not fit loses its end, not its EOS; empty ones have no row. Padding never
    counts in the loss. With `pad="exclude"` the network does not attend to it either; with
    `"as_published"` the network attends to it, it is noised like other tokens, and only the loss
    leaves it out (MDLM's LM1B). `specials=False` leaves out BOS and EOS.
    """

    pad: Literal["exclude", "as_published"] = "exclude"
    specials: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.pad not in ("exclude", "as_published"):
            raise ValueError(f"pad={self.pad!r}: must be 'exclude' or 'as_published'")

    @property
    def protocol(self) -> str:
        seen = ", padding seen" if self.pad == "as_published" else ""
        return f"padded to rows of {self.length}{seen}"

    @property
    def frame(self) -> tuple[bool, bool]:
        return self.specials, False

    @property
    def is_one_document(self) -> bool:
        return self.specials

    @property
    def hides_padding(self) -> bool:
        return self.pad == "exclude"

    def separator(self, vocab: Vocab) -> int | None:
        """Returns EOS, so that one store serves all packings, although the rows leave it out."""
        return end_of(vocab)

    def over(self, stream: TokenStream, vocab: Vocab) -> RowSet:
        if self.specials:
            ends(vocab)
        padding(vocab, is_seen=not self.hides_padding)
        if not stream.filled:
            raise InputError("no document has a token: give text that is not empty")
        return PaddedRows(
            stream,
            vocab,
            length=self.length,
            specials=self.specials,
            sees_padding=not self.hides_padding,
        )
