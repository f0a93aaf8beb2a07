"""Traces: every change that a sampler made, step by step.

A traced run takes the same steps as `generate`, with the loop on the host: after each step the
state is fetched and compared with the one before. Each change of a token is an event. A remasked
token gives an event whose token is the mask; an edited token, one whose token is the new one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key

from mdlm.samplers.state import Samples, SampleState

TINY = 1e-30
"""The confidence recorded for a written token to which the network gave probability 0 (bans and
hooks may leave no other); 0 itself marks noise."""


@dataclass(frozen=True, kw_only=True)
class WindowTrace:
    """The token changes in one batch of windows, in order of time.

    Steps count from 1; step 0 holds the prior's tokens (none if the prior is all masks). `column`
    is the position in the window. `confidence` is the network's probability of the token, 0 for
    the mask and for the prior's tokens. `nfe[k]` counts the network calls up to the end of step k.
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
    """The history of one text: its tokens before sampling (the mask where open), and its changes.

    Positions count from the start of the text.
    """

    start: Int[np.ndarray, " l"]
    step: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    token: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]

    def after(self, step: int) -> Int[np.ndarray, " l"]:
        """The text's tokens at the end of a step, the mask where still open."""
        tokens = self.start.copy()
        for i in np.flatnonzero(self.step <= step):
            tokens[self.position[i]] = self.token[i]
        return tokens


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The history of a batch of texts. Step numbers continue from window to window.

    `pieces` maps every token that occurs, the mask included, to its text. `nfe[k]` counts the
    network calls for the whole batch up to the end of step k. `origin` names the run, its step and
    the seed: "runs/quickstart, step 1900, seed 0"; it is empty where they are not known.
    """

    sampler: str
    mask_id: int
    pieces: dict[int, str]
    nfe: Int[np.ndarray, " steps_and_1"]
    rows: tuple[RowTrace, ...]
    origin: str = ""

    @property
    def steps(self) -> int:
        return len(self.nfe) - 1


class Recorder:
    """Compares each state with the one before, from `tokens` on, and keeps what changed."""

    def __init__(self, tokens: Int[np.ndarray, "b l"], mask_id: int):
        self.tokens, self.mask_id = tokens, mask_id
        self.events: list[tuple[np.ndarray, ...]] = []
        self.nfe: list[int] = []

    def look(self, state: SampleState) -> None:
        """Records the changes."""
        now, confidence, calls = jax.device_get((state.tokens, state.confidence, state.nfe))
        now = np.array(now)  # a copy: the next step reuses the state's memory
        rows, columns = np.nonzero(now != self.tokens)
        drawn = now[rows, columns]
        p = np.clip(confidence[rows, columns], TINY if self.events else 0.0, 1.0)
        p = np.where(drawn == self.mask_id, 0.0, p)
        self.events.append((np.full(len(rows), len(self.nfe)), rows, columns, drawn, p))
        self.tokens = now
        self.nfe.append(int(calls))

    def trace(self) -> WindowTrace:
        """The trace; the last state counts as a step only if it differs from the one before."""
        steps = len(self.nfe)
        if not len(self.events[-1][0]) and self.nfe[-1] == self.nfe[-2]:
            steps -= 1
        step, row, column, token, confidence = (
            np.concatenate(part) for part in zip(*self.events[:steps], strict=True)
        )
        return WindowTrace(
            step=step,
            row=row,
            column=column,
            token=token,
            confidence=confidence,
            nfe=np.array(self.nfe[:steps]),
        )


def states(
    keys: Key[jax.Array, " b"],
    tokens: Int[np.ndarray, "b l"],
    is_fixed: Bool[np.ndarray, "b l"],
    *is_valid: Bool[np.ndarray, "b l"],
    begin: Callable[..., SampleState],
    advance: Callable[..., SampleState],
    finish: Callable[..., SampleState],
) -> Iterator[SampleState]:
    """Yields the state before the first step, after each step and at the end: those of `generate`
    with the same keys. `begin`, `advance` and `finish` are the jitted methods of a `Loop`; each is
    also given `is_valid`, if there is one."""
    for valid in is_valid:
        is_fixed = is_fixed | ~valid
    state = begin(keys, tokens, is_fixed, *is_valid)
    yield state
    while not np.asarray(state.done).all():
        state = advance(state, *is_valid)
        yield state
    yield finish(state, *is_valid)


def generate_traced(
    keys: Key[jax.Array, " b"],
    tokens: Int[np.ndarray, "b l"],
    is_fixed: Bool[np.ndarray, "b l"],
    *is_valid: Bool[np.ndarray, "b l"],
    mask_id: int,
    **steps: Callable[..., SampleState],
) -> tuple[Samples, WindowTrace]:
    """Draws the same samples as `generate` with the same keys, and records every token change.

    `steps` are those of `states`. `finish` counts as a step if it calls the network or changes a
    token.
    """
    known = np.logical_or.reduce([is_fixed, *(~valid for valid in is_valid)])
    recorder = Recorder(np.where(known, tokens, mask_id), mask_id)
    for state in states(keys, tokens, is_fixed, *is_valid, **steps):
        recorder.look(state)
    samples = Samples(tokens=jnp.asarray(recorder.tokens), nfe=jnp.asarray(recorder.nfe[-1]))
    return samples, recorder.trace()


def rows_of(
    windows: Sequence[WindowTrace],
    begins: Int[np.ndarray, "windows b"],
    first: int,
    starts: Sequence[Int[np.ndarray, " _"]],
) -> tuple[Int[np.ndarray, " steps_and_1"], tuple[RowTrace, ...]]:
    """Returns the network calls by step, and the traces of texts written window by window.

    Args:
        windows: in the order in which they were written.
        begins: where the text of each window begins, as a position in the row's text; ignored
            where the window wrote nothing.
        first: the position in a window at which its text begins.
        starts: each text before the first step, the mask where open. Tokens that windows wrote
            past the end of a text are dropped.
    """
    before = np.cumsum([0, *(window.steps for window in windows)])
    calls = np.cumsum([0, *(window.nfe[-1] for window in windows)])
    nfe = [windows[0].nfe[:1] if windows else np.zeros(1, np.int64)]
    nfe += [window.nfe[1:] + call for window, call in zip(windows, calls[:-1], strict=True)]
    rows = []
    for row, start in enumerate(starts):
        parts = []
        for window, begin, steps in zip(windows, begins[:, row], before[:-1], strict=True):
            at = window.column - first + begin
            is_own = (window.row == row) & (at < len(start))
            values = (window.step + steps, at, window.token, window.confidence)
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
