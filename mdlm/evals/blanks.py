"""Blanks in held-out rows: how likely their tokens are, and how often a filling writes them.

    nats(C)    -1/n log p(blank | C), n the length of the blank, C the tokens that are given: those
               on both sides, those on the left, or none; all others are masked
    gain(C)    nats(C) - nats(both sides), of the same rows in the same orders
    exact      share of the rows in which the filling, given both sides, is the text itself
    accuracy   share of the tokens in which it is

A network that attends to the whole row gives log p(blank | C) by the chain rule in random orders of
the blank's positions: the mean is a lower bound, exact if the network is a true posterior
(`evals.orders`). The other networks are conditioned on what is on the left alone, exactly or by
their bound (`evals.likelihood`); what follows a blank does not reach them.

Standard errors: `stderr` of the orders or passes that were drawn, `stderr_rows` over the rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from mdlm.data.pairs import Encoded
from mdlm.data.rows.base import Rows, RowSet
from mdlm.errors import InputError
from mdlm.evals.likelihood import Likelihood
from mdlm.evals.nll import Metric
from mdlm.evals.orders import ChainRule

Place = Literal["begin", "middle", "end"]
Context = Literal["both", "left", "none"]
CONTEXTS: dict[Context, str] = {"both": "both sides", "left": "left side", "none": "nothing"}
"""The tokens that are given, and how tables call them."""

Nats = tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"] | None]
"""-log p of each row's blank in nats, in each order that was drawn, and the variance of the mean
over them; None if it is not known."""
Fill = Callable[[Rows, Bool[np.ndarray, "n l"]], Int[np.ndarray, "n l"]]
"""Returns rows in which the blanks are filled; it does not look at the tokens there."""


@dataclass(frozen=True, kw_only=True)
class Blanks:
    """Which blanks are measured.

    Args:
        lengths: tokens of a blank.
        at: where in the text of a row they are.
        num: rows, drawn from the split by the seed; the same ones for all blanks.
        orders: random orders of a blank's tokens for each row.
        batch_size: rows evaluated at a time.
    """

    lengths: tuple[int, ...] = (1, 4, 16)
    at: tuple[Place, ...] = ("begin", "middle", "end")
    num: int = 64
    orders: int = 2
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self):
        for name, value, least in (
            ("lengths", min(self.lengths, default=0), 1),
            ("num", self.num, 2),
            ("orders", self.orders, 1),
            ("batch_size", self.batch_size, 1),
        ):
            if value < least:
                raise InputError(f"{name}={value}: must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The blanks of one length at one place. `kept` is the share of the rows in which the filling
    has all given tokens as they were. A network without a context has no value for it."""

    tokens: int
    at: Place
    nats: dict[Context, Metric]
    gains: dict[Context, Metric]
    exact: Metric
    accuracy: Metric
    kept: Metric

    @property
    def metrics(self) -> list[Metric]:
        return [*self.nats.values(), *self.gains.values(), self.exact, self.accuracy, self.kept]


class Conditional(Protocol):
    """What gives the log-probability of blanks."""

    contexts: tuple[Context, ...]
    protocol: str

    def __call__(self, rows: Rows, blank: Bool[np.ndarray, "n l"], context: Context) -> Nats: ...


class AnyContext:
    """Networks that attend to the whole row: the chain rule in random orders."""

    contexts: tuple[Context, ...] = ("both", "left", "none")

    def __init__(self, chain: ChainRule, how: Blanks):
        self.chain, self.how = chain, how
        words = f"in {how.orders} random orders" if how.orders > 1 else "in a random order"
        self.protocol = f"-log p(blank | given) <= NELBO, chain rule {words}"

    def __call__(self, rows: Rows, blank: Bool[np.ndarray, "n l"], context: Context) -> Nats:
        n = int(blank[0].sum())
        many = self.how.orders if n > 1 else 1
        random = np.random.default_rng(self.how.seed)  # the same orders for each context
        at = np.nonzero(blank)[1].reshape(-1, n).repeat(many, axis=0)
        orders = random.permuted(at, axis=1)
        given = given_of(blank, context).repeat(many, axis=0)
        valid = None if rows.is_valid.all() else rows.is_valid.repeat(many, axis=0)
        nats = -self.chain(rows.tokens.repeat(many, axis=0), orders, given, valid)
        by_order = nats.reshape(-1, many)
        return by_order, variance_of(by_order, is_exact=n == 1)


class LeftContext:
    """Networks that go from left to right, token by token or in blocks."""

    contexts: tuple[Context, ...] = ("left",)

    def __init__(self, likelihood: Likelihood):
        self.likelihood, self.protocol = likelihood, likelihood.protocol

    def __call__(self, rows: Rows, blank: Bool[np.ndarray, "n l"], context: Context) -> Nats:
        assert context == "left"
        pairs = []
        for tokens, is_blank in zip(rows.tokens, blank, strict=True):
            at = np.flatnonzero(is_blank)
            prompt, response = tokens[: at[0]].tolist(), tokens[at].tolist()
            pair = Encoded(prompt=tuple(prompt), response=tuple(response), where="a blank")
            pairs.append(pair)
        found = self.likelihood(pairs)
        errors = [one.stderr for one in found]
        noise = np.array([0.0 if error is None else error**2 for error in errors])
        return -np.array([[one.value] for one in found]), noise


def variance_of(
    by_order: Float[np.ndarray, "n d"], *, is_exact: bool
) -> Float[np.ndarray, " n"] | None:
    """Returns the variance of each row's mean over orders; None if it has only one."""
    if is_exact:
        return np.zeros(len(by_order))
    orders = by_order.shape[1]
    return None if orders == 1 else by_order.var(axis=1, ddof=1) / orders


def given_of(blank: Bool[np.ndarray, "n l"], context: Context) -> Bool[np.ndarray, "n l"]:
    """Returns the positions that are given beside blanks."""
    if context == "both":
        return ~blank
    before = np.cumsum(blank, axis=1) == 0
    return before if context == "left" else np.zeros_like(before)


def rows_with_room(
    rows: RowSet, how: Blanks, allowed_of: Callable[[Rows], tuple[Rows, Bool[np.ndarray, "n l"]]]
) -> tuple[Rows, Bool[np.ndarray, "n l"]]:
    """Returns `how.num` rows, or as many as there are, in which the longest blank has room, and the
    positions that may be blank.

    `allowed_of` returns rows as the network reads them, and these positions. Raises InputError if
    there are fewer than two such rows.
    """
    order = np.random.default_rng(how.seed).permutation(len(rows))
    found, left = [], how.num
    for start in range(0, len(order), max(how.num, 64)):
        some, allowed = allowed_of(rows.take(order[start : start + max(how.num, 64)]))
        fits = np.flatnonzero(allowed.sum(axis=1) >= max(how.lengths))[:left]
        tokens = some.tokens[fits].astype(np.int32)
        found.append((tokens, some.loss_mask[fits], some.is_valid[fits], allowed[fits]))
        left -= len(fits)
        if left == 0:
            break
    tokens, loss_mask, is_valid, allowed = map(np.concatenate, zip(*found, strict=True))
    if len(tokens) < 2:
        raise InputError(
            f"lengths={max(how.lengths)}: {len(tokens)} rows of the split have room for a blank so"
            " long, and two are needed; give shorter ones, or another split"
        )
    return Rows(tokens=tokens, loss_mask=loss_mask, is_valid=is_valid), allowed


def blanks_in(allowed: Bool[np.ndarray, "n l"], tokens: int, at: Place) -> Bool[np.ndarray, "n l"]:
    """Returns the positions of a blank in each row: so many neighbours of those allowed, the first
    of them, the last, or those in the middle."""
    blank = np.zeros_like(allowed)
    for row, own in zip(blank, allowed, strict=True):
        there = np.flatnonzero(own)
        room = len(there) - tokens
        start = {"begin": 0, "middle": room // 2, "end": room}[at]
        row[there[start : start + tokens]] = True
    return blank


def evaluate(
    rows: Rows,
    allowed: Bool[np.ndarray, "n l"],
    conditional: Conditional,
    fill: Fill,
    how: Blanks,
    *,
    protocol: str,
    filled_by: str,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Cell]:
    """Returns the results of each length at each place. `protocol` names the rows, `filled_by` the
    sampler."""
    wanted: list[tuple[int, Place]] = [(tokens, at) for tokens in how.lengths for at in how.at]
    steps = len(wanted) * (len(conditional.contexts) + 1)
    cells, done = [], 0
    for tokens, at in wanted:
        blank, found = blanks_in(allowed, tokens, at), {}
        for context in conditional.contexts:
            given = given_of(blank, context)
            same = (c for c in found if np.array_equal(given_of(blank, c), given))
            known = next(same, None)  # at an end of the row, one side is empty
            found[context] = found[known] if known else conditional(rows, blank, context)
            report(done := done + 1, steps)
        filled = fill(rows, blank)
        report(done := done + 1, steps)
        likely = f"{protocol}, {conditional.protocol}"
        cells.append(_cell(rows, blank, found, filled, at, (likely, f"{protocol}, {filled_by}")))
    return cells


def _cell(
    rows: Rows,
    blank: Bool[np.ndarray, "n l"],
    found: dict[Context, Nats],
    filled: Int[np.ndarray, "n l"],
    at: Place,
    protocols: tuple[str, str],
) -> Cell:
    (likely, filling), n = protocols, int(blank[0].sum())

    def mean(name: str, values: np.ndarray, noise: np.ndarray | None, protocol: str) -> Metric:
        """The mean over rows of `values`; `noise` is the variance of each."""
        drawn = None if noise is None else math.sqrt(noise.sum()) / len(values)
        spread = float(values.std(ddof=1)) / math.sqrt(len(values))
        name = f"blank of {n}, {at}: {name}"
        return Metric(name, float(values.mean()), drawn, spread, len(values) * n, protocol)

    def per_token(name: str, by_order: np.ndarray, noise: np.ndarray | None) -> Metric:
        variance = None if noise is None else noise / n**2
        return mean(name, by_order.mean(axis=1) / n, variance, likely)

    nats: dict[Context, Metric] = {}
    gains: dict[Context, Metric] = {}
    for context in found:
        nats[context] = per_token(f"nats per token, {CONTEXTS[context]}", *found[context])
        if context != "both" and "both" in found:
            more = found[context][0] - found["both"][0]
            noise = variance_of(more, is_exact=n == 1)
            gains[context] = per_token(f"gain over {CONTEXTS[context]}", more, noise)
    right = filled == rows.tokens
    return Cell(
        tokens=n,
        at=at,
        nats=nats,
        gains=gains,
        exact=mean("exact match", (right | ~blank).all(axis=1) * 1.0, None, filling),
        accuracy=mean("token accuracy", (right & blank).sum(axis=1) / n, None, filling),
        kept=mean("given tokens kept", (right | blank).all(axis=1) * 1.0, None, filling),
    )


def table(cells: Sequence[Cell]) -> str:
    """Returns the results as text of at most 80 columns: values, and in brackets their standard
    errors over rows."""
    gains = [f"over {CONTEXTS[context]}" for context in cells[0].gains]
    first = [[one.nats[context] for context in one.nats] for one in cells]
    others = [[*one.gains.values(), one.exact, one.accuracy] for one in cells]
    kept = np.mean([one.kept.value for one in cells])
    return "\n".join(
        [
            *_lines(cells, [f"given {CONTEXTS[c]}" for c in cells[0].nats], first),
            "",
            *_lines(cells, [*gains, "exact match", "token accuracy"], others),
            f"The given tokens are unchanged in {kept:.1%} of the fillings.",
        ]
    )


def _lines(
    cells: Sequence[Cell], heads: Sequence[str], rows: Sequence[Sequence[Metric]]
) -> list[str]:
    lines = [f"{'blank':13}" + "".join(f"{head:>16}" for head in heads)]
    for one, metrics in zip(cells, rows, strict=True):
        values = (f"{metric.value:.3f} ({metric.stderr_rows:.3f})" for metric in metrics)
        lines.append(f"{one.tokens:5d} {one.at:7}" + "".join(f"{value:>16}" for value in values))
    return lines
