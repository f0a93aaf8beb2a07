"""From documents of any length to rows of one length.

`Wrap` strings all documents together, an EOS after each, and cuts the stream into rows; `Pad`
gives each document a row of its own. Which of the two is used changes the task and therefore the
perplexity, and is part of the name of a number (LM1B: 27.0 padded, 31.8 wrapped for MDLM).
"""

import abc
import functools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32, Integer

from mdlm.types import InputError, Vocab


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows of tokens. `loss_mask`: scored and counted. `is_valid`: seen by the network.

    Tokens are stored in 16 bits where the vocabulary fits. `dropped` counts the documents' own
    tokens that are in no row, `placed` those that are.
    """

    tokens: Integer[np.ndarray, "n l"]
    loss_mask: Bool[np.ndarray, "n l"]
    is_valid: Bool[np.ndarray, "n l"]
    placed: int
    dropped: int

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def is_padded(self) -> bool:
        """Whether any row holds padding. Where none does, a network needs no mask."""
        return not self.is_valid.all()

    def first(self, n: int) -> "Rows":
        """The first `n` rows, for a quick look (`placed` and `dropped` still tell of all)."""
        return replace(
            self,
            tokens=self.tokens[:n],
            loss_mask=self.loss_mask[:n],
            is_valid=self.is_valid[:n],
        )


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

    @abc.abstractmethod
    def rows(self, documents: list[Int32[np.ndarray, "..."]], vocab: Vocab) -> Rows:
        """Rows of encoded documents. InputError where there is too little text for one row."""


def ends(vocab: Vocab) -> tuple[int, int]:
    """BOS and EOS; where there is no BOS, EOS stands in for it (as with GPT-2), and vice versa."""
    bos = vocab.eos_id if vocab.bos_id is None else vocab.bos_id
    eos = vocab.bos_id if vocab.eos_id is None else vocab.eos_id
    if bos is None or eos is None:
        raise InputError(
            "the tokenizer has no token that ends a text: name one, as in Pretrained(eos=...)"
        )
    return bos, eos


def padding(vocab: Vocab) -> int:
    """What stands at padding: PAD, or else EOS, as is usual where there is no PAD."""
    return ends(vocab)[1] if vocab.pad_id is None else vocab.pad_id


def storage(vocab: Vocab) -> type[np.integer]:
    return np.uint16 if vocab.size <= 2**16 else np.int32


@dataclass(frozen=True, kw_only=True)
class Wrap(Packing):
    """Concatenated and wrapped: documents in order, an EOS after each, cut into full rows.

    With `row_specials` each row starts with BOS and ends with EOS around `length - 2` tokens of
    the stream (MDLM, arXiv:2406.07524); without, it is `length` tokens (BD3-LM's
    `insert_special_tokens: false`). All tokens count, the inserted ones too. An empty document
    leaves its EOS, as published.

    The last tokens, too few for a row, have a row of their own, padded, with `is_valid` False at
    the padding (`remainder="pad"`: every token counts once), or are dropped, as published.
    """

    row_specials: bool = True
    remainder: Literal["pad", "drop"] = "pad"

    def __post_init__(self):
        super().__post_init__()
        if self.remainder not in ("pad", "drop"):
            raise ValueError(f"remainder={self.remainder!r} is neither 'pad' nor 'drop'")

    @property
    def protocol(self) -> str:
        rows = f"wrapped rows of {self.length}"
        rows += ", BOS and EOS in each" if self.row_specials else ""
        return rows + (", remainder dropped" if self.remainder == "drop" else "")

    @property
    def frame(self) -> tuple[bool, bool]:
        return self.row_specials, self.row_specials

    def rows(self, documents: list[Int32[np.ndarray, "..."]], vocab: Vocab) -> Rows:
        bos, eos = ends(vocab)
        kind = storage(vocab)
        sizes = np.array([len(document) for document in documents], np.int64)
        after = np.cumsum(sizes + 1)  # where the stream stands after each document's EOS
        total = int(after[-1]) if len(documents) else 0
        inside = self.length - 2 if self.row_specials else self.length
        if total < inside:
            raise InputError(
                f"the text has {total} tokens, too few for one row of length={self.length} "
                f"({inside} needed): give more text or a smaller length"
            )
        stream = np.empty(total, kind)
        stop = np.array([eos], kind)
        np.concatenate(
            [part for doc in documents for part in (doc, stop)], out=stream, casting="unsafe"
        )
        full, rest = divmod(total, inside)
        padded = bool(rest) and self.remainder == "pad"
        tokens = np.full((full + padded, self.length), padding(vocab), kind)
        is_valid = np.ones(tokens.shape, bool)
        first = 1 if self.row_specials else 0
        tokens[:full, first : first + inside] = stream[: full * inside].reshape(full, inside)
        if padded:
            tokens[full, first : first + rest] = stream[full * inside :]
            is_valid[full, first + rest + first :] = False
        if self.row_specials:
            tokens[:, 0] = bos
            tokens[:full, -1] = eos
            tokens[full:, first + rest] = eos
        dropped = 0
        if not padded:
            dropped = rest - int((after > full * inside).sum())
        return Rows(
            tokens=tokens,
            loss_mask=is_valid.copy(),
            is_valid=is_valid,
            placed=int(sizes.sum()) - dropped,
            dropped=dropped,
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

    def rows(self, documents: list[Int32[np.ndarray, "..."]], vocab: Vocab) -> Rows:
        documents = [document for document in documents if len(document)]
        if not documents:
            raise InputError("no document has a token: there is nothing to make rows of")
        kind = storage(vocab)
        first = 1 if self.specials else 0
        sizes = np.array([len(document) for document in documents], np.int64)
        kept = np.minimum(sizes, self.length - 2 * first)
        tokens = np.full((len(documents), self.length), padding(vocab), kind)
        place = np.arange(self.length, dtype=np.int64)[None, :]
        inside = (place >= first) & (place < (first + kept)[:, None])
        tokens[inside] = np.concatenate(
            [document[:n] for document, n in zip(documents, kept, strict=True)]
        )
        if self.specials:
            bos, eos = ends(vocab)
            tokens[:, 0] = bos
            tokens[np.arange(len(tokens)), first + kept] = eos
        loss_mask = place < (kept + 2 * first)[:, None]
        is_valid = np.ones_like(loss_mask) if self.pad == "as_published" else loss_mask.copy()
        return Rows(
            tokens=tokens,
            loss_mask=loss_mask,
            is_valid=is_valid,
            placed=int(kept.sum()),
            dropped=int((sizes - kept).sum()),
        )
