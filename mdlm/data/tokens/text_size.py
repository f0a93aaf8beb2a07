"""The text that each token of a vocabulary spells, in bytes and characters.

Bits per byte divide by the text of the tokens that were scored, and no other.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer

from mdlm.data.tokenizers import byte_characters
from mdlm.data.tokens.tokenizer import Tokenizer

UNITS = ("byte", "character")
"""The units of text that results are given per, in the order of the columns of `TextSizes`."""
FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token that is one byte, in vocabularies that spell unknown characters by their bytes."""

CONTINUING = {c for byte, c in enumerate(byte_characters()) if 0x80 <= byte < 0xC0}
"""What stands in a byte-level vocabulary for the bytes that continue a character."""


@dataclass(frozen=True, eq=False)
class TextSizes:
    """By token, the UTF-8 bytes and the characters that it spells, `[v 2]`; 0 for special tokens.

    A character of several tokens counts where its first byte is. If `is_exact`, the sizes of the
    tokens of a text add up to the size of the text. Otherwise the tokenizer normalizes the text,
    or adds spaces to it: the sums then only divide the known size of a text between its tokens.
    """

    table: Integer[np.ndarray, "v 2"]
    is_exact: bool

    @staticmethod
    def of(tokenizer: Tokenizer) -> "TextSizes":
        state = json.loads(tokenizer.backend.to_str())
        special = {token["id"] for token in state["added_tokens"] if token["special"]}
        special.update(i for i in vars(tokenizer.vocab).values() if i is not None)
        plain = [i for i in range(tokenizer.vocab.size) if i not in special]
        names = {i: tokenizer.backend.id_to_token(i) for i in plain}
        table = np.zeros((tokenizer.vocab.size, 2), np.int32)
        if (state["decoder"] or {}).get("type") == "ByteLevel":
            sizes = {i: _of_byte_level(name) for i, name in names.items() if name is not None}
        else:
            known = [i for i in plain if names[i] is not None]
            texts = tokenizer.pieces(known)
            sizes = {i: _of_piece(str(names[i]), texts[i]) for i in known}
        for token, size in sizes.items():
            table[token] = size
        is_exact = state["normalizer"] is None and not _changes_text(state["pre_tokenizer"])
        lossless = (state["decoder"] or {}).get("type") in ("ByteLevel", "Fuse")
        return TextSizes(table, is_exact and lossless)

    def total(self, tokens: Integer[np.ndarray, "..."], weight: Any = None) -> np.ndarray:
        """Returns the bytes and characters that `tokens` spell, `[2]`, float64.

        `weight` has the shape of `tokens`: the part of each token that is counted.
        """
        counts = np.bincount(
            np.asarray(tokens).ravel(),
            None if weight is None else np.asarray(weight, np.float64).ravel(),
            minlength=len(self.table),
        )
        return counts @ self.table


def _of_byte_level(name: str) -> tuple[int, int]:
    """A token of a byte-level vocabulary has a character for each byte."""
    return len(name), sum(character not in CONTINUING for character in name)


def _of_piece(name: str, text: str) -> tuple[int, int]:
    byte = FALLBACK.fullmatch(name)
    if byte:
        return 1, int(not 0x80 <= int(byte[1], 16) < 0xC0)
    return len(text.encode("utf-8", "replace")), len(text)


def _changes_text(pre_tokenizer: Any) -> bool:
    """Whether a pre-tokenizer removes characters or adds some."""
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any(_changes_text(part) for part in pre_tokenizer["pretokenizers"])
    if pre_tokenizer["type"] == "ByteLevel":
        return bool(pre_tokenizer["add_prefix_space"])
    return pre_tokenizer.get("behavior") not in ("Isolated", "MergedWithPrevious", "MergedWithNext")
