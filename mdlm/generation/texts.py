"""Generated texts, divided where their documents end, and how a terminal shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdlm.data.tokens.special_tokens import end_of
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.foreign.shown import visible
from mdlm.generation.trace import Trace

END = "[end of document]"
"""The line that stands where a document ends."""


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


@dataclass(frozen=True)
class Generation:
    """The texts of one call, and their cost. `seconds` excludes compilation.

    `trace` is None unless requested; its positions count from the start of each text. Tracing
    takes time, which `seconds` includes. `note` is that of the sampler (`Sampler.note`).
    """

    texts: tuple[Text, ...]
    new_tokens: int
    nfe: int
    windows: int
    seconds: float
    trace: Trace | None = None
    note: str = ""

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds > 0 else float("nan")

    def __str__(self) -> str:
        windows = f" in {self.windows} windows" if self.windows > 1 else ""
        return (
            f"{len(self.texts)} texts, {self.new_tokens} new tokens, NFE {self.nfe}{windows},"
            f" {self.seconds:.1f} s, {self.tokens_per_second:.0f} tokens/s"
            f"{self.note and '; '}{self.note}"
        )


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
