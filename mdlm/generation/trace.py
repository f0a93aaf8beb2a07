"""What a sampler did, step by step.

A traced run takes the same steps as `generate`, with the loop on the host: after each step the
state is fetched and compared with the one before. A change of token is an event. A token that is
taken back is an event whose token is the mask, a token revised at once one whose token is another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key

from mdlm.samplers.state import Samples, SampleState

TINY = 1e-30
"""The confidence told of a token that the network gave no mass, and that was written all the same
(bans and hooks may leave no other): 0 would say that it is noise."""


@dataclass(frozen=True, kw_only=True)
class WindowTrace:
    """The changes of token in one batch of windows, in the order in which they came.

    A step's number is that of the steps taken up to its end: what the prior put at a place
    (nothing, where it is all masks) has step 0. `confidence` is the probability that the network
    gave the token, 0 for the mask and for the prior's tokens. `nfe[k]` counts the network calls
    up to the end of step k.
    """

    step: Int[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    column: Int[np.ndarray, " n"]
    token: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    nfe: Int[np.ndarray, " steps_and_1"]

    @property
    def steps(self) -> int:
        return len(self.nfe) - 1


@dataclass(frozen=True, kw_only=True)
class RowTrace:
    """How one text came about: what it started as, the mask where it was open, and its changes.

    A position is a place in the text.
    """

    start: Int[np.ndarray, " l"]
    step: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    token: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]

    def after(self, step: int) -> Int[np.ndarray, " l"]:
        """The text's tokens at the end of a step, the mask where it is open."""
        tokens = self.start.copy()
        for i in np.flatnonzero(self.step <= step):
            tokens[self.position[i]] = self.token[i]
        return tokens


@dataclass(frozen=True, kw_only=True)
class Trace:
    """How a batch of texts came about. Steps count on from window to window.

    `pieces` gives the text of every token that occurs, the mask's too. `nfe[k]` counts the
    network calls, for the whole batch, up to the end of step k.
    """

    sampler: str
    mask_id: int
    pieces: dict[int, str]
    nfe: Int[np.ndarray, " steps_and_1"]
    rows: tuple[RowTrace, ...]

    @property
    def steps(self) -> int:
        return len(self.nfe) - 1


def generate_traced(
    keys: Key[jax.Array, " b"],
    tokens: Int[np.ndarray, "b l"],
    is_fixed: Bool[np.ndarray, "b l"],
    *,
    begin: Callable[..., SampleState],
    advance: Callable[[SampleState], SampleState],
    finish: Callable[[SampleState], SampleState],
    mask_id: int,
) -> tuple[Samples, WindowTrace]:
    """Draws what `generate` draws from the same keys, and tells of every change of token.

    `begin`, `advance` and `finish` are those of a `Loop`, jitted. Where `finish` asks the network
    or changes a token, it counts as a step.
    """
    seen = np.where(is_fixed, tokens, mask_id)
    events: list[tuple[np.ndarray, ...]] = []
    nfe: list[int] = []

    def look(state: SampleState) -> bool:
        """Notes what changed; True when all rows are done."""
        nonlocal seen
        now, confidence, done, calls = jax.device_get(
            (state.tokens, state.confidence, state.done, state.nfe)
        )
        rows, columns = np.nonzero(now != seen)
        drawn = now[rows, columns]
        p = np.clip(confidence[rows, columns], TINY if events else 0.0, 1.0)
        p = np.where(drawn == mask_id, 0.0, p)
        events.append((np.full(len(rows), len(nfe)), rows, columns, drawn, p))
        seen = now
        nfe.append(int(calls))
        return bool(done.all())

    state = begin(keys, tokens, is_fixed)
    is_over = look(state)
    while not is_over:
        state = advance(state)
        is_over = look(state)
    state = finish(state)
    look(state)
    if not len(events[-1][0]) and nfe[-1] == nfe[-2]:
        events.pop()
        nfe.pop()
    step, row, column, token, confidence = (
        np.concatenate(part) for part in zip(*events, strict=True)
    )
    trace = WindowTrace(
        step=step, row=row, column=column, token=token, confidence=confidence, nfe=np.array(nfe)
    )
    return Samples(tokens=jnp.asarray(seen), nfe=jnp.asarray(nfe[-1])), trace


def rows_of(
    windows: Sequence[WindowTrace],
    begins: Int[np.ndarray, "windows b"],
    first: int,
    starts: Sequence[Int[np.ndarray, " _"]],
) -> tuple[Int[np.ndarray, " steps_and_1"], tuple[RowTrace, ...]]:
    """Network calls by step, and the traces of texts that were written window by window.

    Args:
        windows: in the order in which they were written.
        begins: the place in a row's text of the first token of a window's text; anything where
            the window wrote nothing.
        first: the column in which the text of a window begins.
        starts: each text before the first step, the mask where it is open. What windows wrote
            past its end is dropped.
    """
    before = np.cumsum([0, *(window.steps for window in windows)])
    calls = np.cumsum([0, *(window.nfe[-1] for window in windows)])
    nfe = [windows[0].nfe[:1] if windows else np.zeros(1, np.int64)]
    nfe += [window.nfe[1:] + call for window, call in zip(windows, calls[:-1], strict=True)]
    rows = []
    for row, start in enumerate(starts):
        parts = []
        for window, begin, steps in zip(windows, begins[:, row], before[:-1], strict=True):
            place = window.column - first + begin
            is_own = (window.row == row) & (place < len(start))
            values = (window.step + steps, place, window.token, window.confidence)
            parts.append([value[is_own] for value in values])
        if not parts:
            parts = [[np.zeros(0, np.int64)] * 3 + [np.zeros(0)]]
        step, position, token, confidence = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        rows.append(
            RowTrace(start=start, step=step, position=position, token=token, confidence=confidence)
        )
    return np.concatenate(nfe), tuple(rows)
