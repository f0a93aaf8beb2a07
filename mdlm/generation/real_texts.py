"""Real texts to hold generated ones against: as long, divided into documents in the same way."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer

from mdlm.data.packing import Packing
from mdlm.data.rows.base import RowSet
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.generation.texts import Text, text_of

TAKEN = 256
"""Rows that are read at a time."""


def real_texts(
    rows: RowSet,
    packing: Packing,
    tokenizer: Tokenizer,
    *,
    num: int,
    length: int,
    seed: int = 0,
) -> list[Text]:
    """Returns at most `num` texts of a split, drawn without replacement.

    A text has `length` tokens: of one row without its frame, or of as many rows that follow each
    other as it takes. Where rows are documents, it is one of these, cut off at `length`.
    """
    found: list[Text] = []
    whole, room = packing.is_one_document, packing.length - sum(packing.frame)
    for tokens in _drawn(rows, packing.frame, 1 if whole else math.ceil(length / room), seed):
        if len(tokens) >= length or (whole and len(tokens)):
            found.append(text_of(tokenizer, tokens[:length]))
        if len(found) == num:
            break
    return found


def _drawn(
    rows: RowSet, frame: tuple[bool, bool], joined: int, seed: int
) -> Iterator[Integer[np.ndarray, "..."]]:
    """Yields the tokens of `joined` rows after each other, without frames and padding, in random
    order."""
    order = np.random.default_rng(seed).permutation(len(rows) // joined)
    step = max(1, TAKEN // joined)
    for begin in range(0, len(order), step):
        at = (order[begin : begin + step, None] * joined + np.arange(joined)).ravel()
        some = rows.take(at.astype(np.int64))
        own = [
            tokens[is_text][int(frame[0]) :][: -1 if frame[1] else None]
            for tokens, is_text in zip(some.tokens, some.loss_mask, strict=True)
        ]
        for i in range(0, len(own), joined):
            yield np.concatenate(own[i : i + joined])
