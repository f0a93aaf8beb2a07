"""Text of any length from a network of a fixed length: semi-autoregressive generation.

A window is generated; its last `length - stride` tokens become the fixed beginning of the next
window, which adds `stride` more tokens, and so on (MDLM section 5, arXiv:2406.07524). The last
window slides less if fewer tokens are missing. Networks trained on rows of the form [BOS] text
[EOS] need both ends in every window: the frame fixes them there, and only the text between them
slides, so the result contains no artificial ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Int, Key

from mdlm.data.packing import Packing
from mdlm.data.tokens.special_tokens import ends
from mdlm.errors import InputError
from mdlm.experiment.model import Model
from mdlm.generation.prompts import check_prompt
from mdlm.samplers.state import Samples
from mdlm.types import Vocab

Run = Callable[..., Samples]
"""`run(keys [b], tokens [b l], is_fixed [b l]) -> Samples`: a compiled `generate`. If some
positions are padding, `is_valid [b l]` follows."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a long text is cut into windows.

    `length` is the network's row length. `stride` is the number of new tokens in each window but
    the first (default: half of a window's text). `frame` holds the first and the last token of
    every window, None for no such token. With `closes_at` = n a shorter text is in a row of its own
    length, rounded up to a multiple of n; the rest of the window is padding.
    """

    length: int
    stride: int | None = None
    frame: tuple[int | None, int | None] = (None, None)
    closes_at: int | None = None

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


def window_of(packing: Packing, model: Model) -> Windows:
    """Returns windows with the length and frame of the rows that a network was trained on.

    A causal network always needs a start token. Raises InputError if the tokenizer has none.
    """
    begins, closes = packing.frame
    causal = model.experiment.network.attends == "causal"
    bos, eos = ends(model.vocab) if begins or closes or causal else (None, None)
    return Windows(
        length=packing.length,
        frame=(bos if begins or causal else None, eos if closes and not causal else None),
    )


def window_of_answers(
    prompts: Sequence[Sequence[int]], length: int, longest: int, network: Any
) -> Windows:
    """Returns the window that holds each prompt with an answer of `length` tokens and nothing else.

    Raises InputError if a row of `longest` tokens does not hold them.
    """
    most, block = max(map(len, prompts)), getattr(network, "block_size", 0) or 1
    total = -(-(most + length) // block) * block
    if length < 1 or total > longest:
        raise InputError(
            f"length={length}: must be from 1 to {longest - most}, as the prompt has"
            f" {most} tokens and a row of this run {longest}"
        )
    # What follows a text is nothing to a network that goes from left to right.
    return Windows(length=total, closes_at=None if network.attends == "causal" else block)


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


class Writing:
    """Texts on their way from prompts to `total` tokens, prompt included, window by window.

    `total` is one number, or one for each prompt. Of a prompt that leaves no room in a window, the
    window holds the last tokens only. A row ends after the first token of `stop_at` that it
    generates (it is kept and counted). `lengths` has None for rows that have not ended. Raises
    InputError if a prompt is longer than its `total`, or has a token that may not be fixed.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        total: int | Sequence[int],
        window: Windows,
        vocab: Vocab,
        stop_at: Sequence[int] = (),
    ):
        self.window, self.vocab, self.stop_at = window, vocab, stop_at
        self.totals = [total] * len(prompts) if isinstance(total, int) else list(total)
        rows = enumerate(zip(prompts, self.totals, strict=True))
        self.texts = [_checked(prompt, row, total, vocab) for row, (prompt, total) in rows]
        self._starts = [len(text) for text in self.texts]
        pairs = list(zip(self._starts, self.totals, strict=True))
        self.lengths = [total if start == total else None for start, total in pairs]
        self.windows = max((window.count(*pair) for pair in pairs), default=0)
        self.begins: list[list[int]] = []

    @property
    def open_rows(self) -> int:
        return self.lengths.count(None)

    def keys(self, keys: Key[Array, " b"]) -> Key[Array, " b"]:
        """The keys of the next window."""
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, len(self.begins))

    def next(self) -> tuple[np.ndarray, ...]:
        """The next window of every row: its tokens [b l], which are fixed, and, if some are
        padding, which are not. All positions of ended rows are fixed: they need no steps."""
        shape = (len(self.texts), self.window.length)
        tokens, is_fixed = np.full(shape, filler(self.vocab), np.int32), np.zeros(shape, bool)
        for row, text in enumerate(self.texts):
            if self.lengths[row] is not None:
                is_fixed[row] = True
                continue
            context = self.window.context(len(text), self.totals[row])
            tokens[row, self.window.text][:context] = text[len(text) - context :]
            is_fixed[row, self.window.text][:context] = True
        for column, token in zip((0, -1), self.window.frame, strict=True):
            if token is not None:
                tokens[:, column], is_fixed[:, column] = token, True
        if (n := self.window.closes_at) is None:
            return tokens, is_fixed
        ends = -(-np.array(self.totals) // n) * n
        is_valid = np.arange(self.window.length)[None] < ends[:, None]
        return (tokens, is_fixed) if is_valid.all() else (tokens, is_fixed, is_valid)

    def with_window(
        self, row: int, written: Int[np.ndarray, " l"], count: int | None = None
    ) -> tuple[list[int], int | None]:
        """The text of an open row with the first `count` tokens of the text in its window (None:
        all), and its length if the row then ends, else None."""
        text, total = self.texts[row], self.totals[row]
        context = self.window.context(len(text), total)
        text = text + written[self.window.text][context:count].tolist()
        for end in range(self._starts[row], min(len(text), total)):
            if text[end] in self.stop_at:
                return text, end + 1
        return text, total if len(text) >= total else None

    def add(self, written: Int[np.ndarray, "b l"]) -> None:
        """Takes the windows of all rows, as they were generated."""
        self.begins.append([-1] * len(self.texts))
        for row, text in enumerate(self.texts):
            if self.lengths[row] is None:
                context = self.window.context(len(text), self.totals[row])
                self.begins[-1][row] = len(text) - context
                self.texts[row], self.lengths[row] = self.with_window(row, written[row])


def generate_long(
    keys: Key[Array, " b"],
    prompts: Sequence[Sequence[int]],
    total: int | Sequence[int],
    *,
    window: Windows,
    run: Run,
    vocab: Vocab,
    stop_at: Sequence[int] = (),
    report: Callable[[WindowDone], None] | None = None,
) -> LongSamples:
    """Continues each prompt (which may be empty) to `total` tokens, as `Writing` does.

    `run` is called with the same shapes every time, so a jitted one compiles once. Generation stops
    when all rows have ended. Each row's text depends on its own prompt and key, not on the other
    rows. Raises InputError as `Writing`.
    """
    texts = Writing(prompts, total, window, vocab, stop_at)
    nfe = 0
    while texts.open_rows:
        samples = run(texts.keys(keys), *texts.next())
        nfe += int(samples.nfe)
        texts.add(np.asarray(samples.tokens))
        if report is not None:
            done, rows = len(texts.begins), texts.open_rows
            report(WindowDone(window=done, windows=texts.windows, open_rows=rows, nfe=nfe))
    ended = stop_at[0] if stop_at else filler(vocab)
    return LongSamples(
        tokens=_cut(texts.texts, texts.lengths, max(texts.totals, default=0), ended),
        lengths=np.asarray(texts.lengths, np.int32),
        nfe=nfe,
        windows=len(texts.begins),
        begins=np.asarray(texts.begins, np.int32).reshape(len(texts.begins), len(prompts)),
    )


def _checked(prompt: Sequence[int], row: int, total: int, vocab: Vocab) -> list[int]:
    tokens = np.asarray(prompt, np.int64).reshape(-1)
    if len(tokens) > total:
        raise InputError(
            f"prompt {row} has {len(tokens)} tokens, more than the {total} of the whole text"
        )
    check_prompt(tokens[None], np.ones((1, len(tokens)), bool), vocab, first_row=row)
    return tokens.tolist()


def _cut(
    texts: list[list[int]], lengths: list[int | None], total: int, filler: int
) -> Int[np.ndarray, "b total"]:
    """The texts as one array; what follows the end of a row is `filler`."""
    result = np.full((len(texts), total), filler, np.int32)
    for row, text in enumerate(texts):
        result[row, : lengths[row]] = text[: lengths[row]]
    return result


def filler(vocab: Vocab) -> int:
    """A token other than the mask, for positions that are never read."""
    return 0 if vocab.mask_id != 0 else 1
