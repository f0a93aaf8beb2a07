"""From documents of any length to rows of one length.

`Wrap` strings all documents together, an EOS after each, and cuts the stream into rows; `Pad`
gives each document a row of its own. Which of the two is used changes the task and therefore the
perplexity, and is part of the name of a number (LM1B: 27.0 padded, 31.8 wrapped for MDLM).

A packing says how rows are to be cut. The rows themselves (`cut_rows`) are made when they are
asked for, from a stream in memory or in a store alike.
"""

import abc
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int32

from mdlm.data.rows.base import RowSet
from mdlm.data.rows.packed import PaddedRows, WrappedRows
from mdlm.data.rows.token_stream import ArrayStream, TokenStream
from mdlm.data.tokens.special_tokens import ends, padding, storage
from mdlm.errors import InputError
from mdlm.types import Vocab


@dataclass(frozen=True, kw_only=True)
class Packing(abc.ABC):
    """How documents become rows of `length` tokens."""

    length: int

    def __post_init__(self):
        if self.length < 3:
            raise ValueError(f"length={self.length}: a row has at least 3 tokens")

    @property
    @abc.abstractmethod
    def protocol(self) -> str:
        """The packing in a few words, for the line in which a perplexity is given."""

    @property
    @abc.abstractmethod
    def frame(self) -> tuple[bool, bool]:
        """Whether every row begins with BOS, and whether every (full) row ends with EOS."""

    @property
    @abc.abstractmethod
    def hides_padding(self) -> bool:
        """Whether rows may have padding that the network must not see: batches then say where."""

    @property
    @abc.abstractmethod
    def parts_documents(self) -> bool:
        """Whether attention stays inside each document of a row: batches then number them."""

    @abc.abstractmethod
    def separator(self, vocab: Vocab) -> int | None:
        """What a stream that is made for this packing has after each document; None: nothing."""

    @abc.abstractmethod
    def over(self, stream: TokenStream, vocab: Vocab) -> RowSet:
        """The rows of a stream. InputError where it is not made for this packing, or has too
        little text for one row."""

    def of(self, documents: list[Int32[np.ndarray, "..."]], vocab: Vocab) -> RowSet:
        """The rows of encoded documents."""
        return self.over(ArrayStream(documents, self.separator(vocab), storage(vocab)), vocab)


@dataclass(frozen=True, kw_only=True)
class Wrap(Packing):
    """Concatenated and wrapped: documents in order, an EOS after each, cut into full rows.

    With `row_specials` each row starts with BOS and ends with EOS around `length - 2` tokens of
    the stream (MDLM, arXiv:2406.07524); without, it is `length` tokens (BD3-LM's
    `insert_special_tokens: false`). All tokens count, the inserted ones too. An empty document
    leaves its EOS, as published. With `eos=False` nothing stands between documents (text8).

    With `segments` attention stays inside each document. A document's EOS belongs to it, a row's
    BOS to the first document in the row, a row's EOS to the last.

    The last tokens, too few for a row, have a row of their own, padded, with `is_valid` False at
    the padding (`remainder="pad"`: every token counts once), or are dropped, as published.
    """

    row_specials: bool = True
    remainder: Literal["pad", "drop"] = "pad"
    eos: bool = True
    segments: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.remainder not in ("pad", "drop"):
            raise ValueError(f"remainder={self.remainder!r} is neither 'pad' nor 'drop'")

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
    def parts_documents(self) -> bool:
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
                f"the text was made with {there} after each document, Wrap(eos={self.eos}) is for "
                f"{wanted}: use Wrap(eos={stream.eos is not None}), or make the text anew"
            )
        if self.row_specials:
            ends(vocab)
        if self.remainder == "pad":
            padding(vocab)
        inside = self.length - 2 if self.row_specials else self.length
        if stream.total < inside:
            raise InputError(
                f"the text has {stream.total} tokens, too few for one row of length={self.length} "
                f"({inside} needed): give more text or a smaller length"
            )
        return WrappedRows(
            stream,
            vocab,
            length=self.length,
            row_specials=self.row_specials,
            keeps_rest=self.remainder == "pad",
            segments=self.segments,
        )


@dataclass(frozen=True, kw_only=True)
class Pad(Packing):
    """One document per row: [BOS] document [EOS], cut off at `length`, then padding.

    A document that does not fit loses its end, not its EOS; empty ones have no row. Padding is
    never scored. With `pad="exclude"` it does not exist for the network either; with
    `"as_published"` the network sees it, noised like everything else, and it is left out of the
    loss alone (MDLM's LM1B). `specials=False` leaves out BOS and EOS.
    """

    pad: Literal["exclude", "as_published"] = "exclude"
    specials: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.pad not in ("exclude", "as_published"):
            raise ValueError(f"pad={self.pad!r} is neither 'exclude' nor 'as_published'")

    @property
    def protocol(self) -> str:
        seen = ", padding seen" if self.pad == "as_published" else ""
        return f"padded to rows of {self.length}{seen}"

    @property
    def frame(self) -> tuple[bool, bool]:
        return self.specials, False

    @property
    def hides_padding(self) -> bool:
        return self.pad == "exclude"

    @property
    def parts_documents(self) -> bool:
        return False

    def separator(self, vocab: Vocab) -> int | None:
        """EOS, so that one store serves all packings; rows do not need it and leave it out."""
        return vocab.bos_id if vocab.eos_id is None else vocab.eos_id

    def over(self, stream: TokenStream, vocab: Vocab) -> RowSet:
        if self.specials:
            ends(vocab)
        padding(vocab)
        if not stream.filled:
            raise InputError("no document has a token: there is nothing to make rows of")
        return PaddedRows(
            stream,
            vocab,
            length=self.length,
            specials=self.specials,
            sees_padding=self.pad == "as_published",
        )
