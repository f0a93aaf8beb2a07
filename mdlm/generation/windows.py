"""Text of any length from a network of a fixed length: semi-autoregressive generation.

A window is generated; its last `length - stride` tokens become the fixed beginning of the next
window, which adds `stride` more tokens, and so on (MDLM section 5, arXiv:2406.07524). The last
window slides less if fewer tokens are missing. Networks trained on rows of the form [BOS] text
[EOS] need both ends in every window: the frame fixes them there, and only the text between them
slides, so the result contains no artificial ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Key

from mdlm.errors import InputError
from mdlm.generation.prompts import check_prompt
from mdlm.samplers.state import Samples
from mdlm.types import Vocab

Run = Callable[..., Samples]
"""`run(keys [b], tokens [b l], is_fixed [b l]) -> Samples`: a compiled `generate`."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a long text is cut into windows.

    `length` is the network's row length. `stride` is the number of new tokens in each window but
    the first (default: half of a window's text). `frame` holds the first and the last token of
    every window, None for no such token.
    """

    length: int
    stride: int | None = None
    frame: tuple[int | None, int | None] = (None, None)

    def __post_init__(self):
        if self.room < 1:
            raise ValueError(
                f"length={self.length}: a window has no room for text beside its frame"
            )
        if self.stride is not None and not 1 <= self.stride <= self.room:
            raise ValueError(
                f"stride={self.stride}: must be in 1..{self.room}, the text of a window"
            )

    @property
    def room(self) -> int:
        """The number of text tokens in a window: all but the frame."""
        return self.length - sum(token is not None for token in self.frame)

    @property
    def text(self) -> slice:
        """The positions of the text in a window."""
        first = int(self.frame[0] is not None)
        return slice(first, first + self.room)

    @property
    def advance(self) -> int:
        """The stride, its default filled in."""
        return max(1, self.room // 2) if self.stride is None else self.stride

    def context(self, known: int, total: int) -> int:
        """How many of the `known` tokens begin the next window, on the way to `total`."""
        if known < self.room:
            return known
        return self.room - min(self.advance, total - known)

    def count(self, known: int, total: int) -> int:
        """The number of windows that it takes from `known` tokens to `total`."""
        windows = 0
        while known < total:
            known += self.room - self.context(known, total)
            windows += 1
        return windows


@dataclass(frozen=True, kw_only=True)
class WindowDone:
    """Progress: the number of the window just finished, of at most `windows`."""

    window: int
    windows: int
    open_rows: int
    nfe: int


@dataclass(frozen=True, kw_only=True)
class LongSamples:
    """The text of row i is `tokens[i, :lengths[i]]`, with the prompt, without the frame.

    The tokens after it are filler. The text in window w of row i begins at position
    `begins[w, i]` of the row's text; -1 if the row had already ended.
    """

    tokens: Int[np.ndarray, "b total"]
    lengths: Int[np.ndarray, " b"]
    nfe: int
    windows: int
    begins: Int[np.ndarray, "windows b"]


def generate_long(
    keys: Key[Array, " b"],
    prompts: Sequence[Sequence[int]],
    total: int,
    *,
    window: Windows,
    run: Run,
    vocab: Vocab,
    stop_at: Sequence[int] = (),
    report: Callable[[WindowDone], None] | None = None,
) -> LongSamples:
    """Continues each prompt (which may be empty) to `total` tokens, the prompt included.

    `run` is called with the same shapes every time, so a jitted one compiles once. Of a prompt
    that leaves no room in a window, the window holds the last tokens only. A row ends after the
    first token of `stop_at` that it generates (it is kept and counted); generation stops when all
    rows have ended. Each row's text depends on its own prompt and key, not on the other rows.

    Raises InputError if a prompt is longer than `total`, or has a token that may not be fixed.
    """
    texts = [_checked(prompt, row, total, vocab) for row, prompt in enumerate(prompts)]
    starts = [len(text) for text in texts]
    lengths = [total if start == total else None for start in starts]
    windows = max((window.count(start, total) for start in starts), default=0)
    nfe = 0
    begins: list[list[int]] = []
    while None in lengths:
        tokens, is_fixed = _frame(texts, lengths, total, window, vocab)
        window_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, len(begins))
        samples = run(window_keys, tokens, is_fixed)
        nfe += int(samples.nfe)
        written = np.asarray(samples.tokens)[:, window.text]
        begins.append([-1] * len(texts))
        for row, text in enumerate(texts):
            if lengths[row] is not None:
                continue
            context = window.context(len(text), total)
            begins[-1][row] = len(text) - context
            text.extend(written[row, context:].tolist())
            lengths[row] = _length(text, starts[row], total, stop_at)
        if report is not None:
            open_rows = lengths.count(None)
            report(WindowDone(window=len(begins), windows=windows, open_rows=open_rows, nfe=nfe))
    return LongSamples(
        tokens=_cut(texts, lengths, total, stop_at[0] if stop_at else _filler(vocab)),
        lengths=np.asarray(lengths, np.int32),
        nfe=nfe,
        windows=len(begins),
        begins=np.asarray(begins, np.int32).reshape(len(begins), len(texts)),
    )


def _checked(prompt: Sequence[int], row: int, total: int, vocab: Vocab) -> list[int]:
    tokens = np.asarray(prompt, np.int64).reshape(-1)
    if len(tokens) > total:
        raise InputError(
            f"prompt {row} has {len(tokens)} tokens, more than the {total} of the whole text"
        )
    check_prompt(tokens[None], np.ones((1, len(tokens)), bool), vocab, first_row=row)
    return tokens.tolist()


def _length(text: list[int], start: int, total: int, stop_at: Sequence[int]) -> int | None:
    """The length of a finished row: up to the first token of `stop_at` that was generated, or
    `total`; else None."""
    for end in range(start, min(len(text), total)):
        if text[end] in stop_at:
            return end + 1
    return total if len(text) >= total else None


def _cut(
    texts: list[list[int]], lengths: list[int | None], total: int, filler: int
) -> Int[np.ndarray, "b total"]:
    """The texts as one array; what follows the end of a row is `filler`."""
    result = np.full((len(texts), total), filler, np.int32)
    for row, text in enumerate(texts):
        result[row, : lengths[row]] = text[: lengths[row]]
    return result


def _frame(
    texts: list[list[int]], lengths: list[int | None], total: int, window: Windows, vocab: Vocab
) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """The next window of every row. All positions of ended rows are fixed, so that they need no
    steps, but the shape of the batch stays the same.
    """
    shape = (len(texts), window.length)
    tokens, is_fixed = np.full(shape, _filler(vocab), np.int32), np.zeros(shape, bool)
    for row, text in enumerate(texts):
        if lengths[row] is not None:
            is_fixed[row] = True
            continue
        context = window.context(len(text), total)
        tokens[row, window.text][:context] = text[len(text) - context :]
        is_fixed[row, window.text][:context] = True
    for column, token in zip((0, -1), window.frame, strict=True):
        if token is not None:
            tokens[:, column], is_fixed[:, column] = token, True
    return tokens, is_fixed


def _filler(vocab: Vocab) -> int:
    """A token other than the mask, for positions that are never read."""
    return 0 if vocab.mask_id != 0 else 1
