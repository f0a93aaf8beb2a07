"""A generated text, divided where its documents end, and how a terminal shows it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdlm.data.tokens.special_tokens import end_of
from mdlm.data.tokens.tokenizer import Tokenizer

END = "[end of document]"
"""The line that stands where a document ends."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys, but for tab and line break."""


@dataclass(frozen=True)
class Text:
    """One generated text, prompt included, and its tokens.

    `pieces` is the text divided after each end-of-text token; the last piece is empty if the text
    ends with one.
    """

    text: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The text for a terminal: a line where a document ends, control characters escaped."""
        *ended, last = map(visible, self.pieces or (self.text,))
        lines = [f"{piece.removesuffix(chr(10))}\n{END}" for piece in ended]
        return "\n".join([*lines, last] if last or not lines else lines)


def visible(text: str) -> str:
    """Returns a text with control characters written as `\\x1b`."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def text_of(tokenizer: Tokenizer, ids: np.ndarray | Sequence[int]) -> Text:
    """Returns the text of tokens."""
    ids = np.asarray(ids, np.int64)
    tokens = tuple(int(i) for i in ids)
    pieces = (tokenizer.decode(part) for part in documents(ids, tokenizer))
    return Text(tokenizer.decode(tokens), tokens, tuple(pieces))


def documents(ids: np.ndarray, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Returns the tokens divided after each end-of-text token, at least one part."""
    eos = end_of(tokenizer.vocab)
    return [ids] if eos is None else np.split(ids, np.flatnonzero(ids == eos) + 1)
