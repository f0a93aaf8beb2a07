"""Perplexity, from sums of an objective's bound (or exact likelihood) over a split.

Independent passes over the split give the mean and its Monte-Carlo standard error (their standard
deviation / sqrt(passes)); the spread between rows gives the standard error over sequences, which
comes from the choice of the split, not from the noise.

    nats per token   sum of bounds / evaluated tokens       perplexity   exp of that
    bits per byte    sum of bounds / (ln 2 * bytes of the text that the tokens spell)
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from mdlm.errors import InputError

SLACK = 1e-3
"""Nats per token by which rounding may take a bound below 0."""


@dataclass(frozen=True)
class Metric:
    """A number, its standard errors, and the protocol that it was measured by.

    `stderr` is that of the Monte-Carlo estimate, None if nothing is drawn or one pass was made;
    `stderr_rows` is over sequences; `n` is the number of tokens, bytes or characters divided by.
    """

    name: str
    value: float
    stderr: float | None
    stderr_rows: float | None
    n: float
    protocol: str

    def __str__(self) -> str:
        return table([self])


def as_line(metrics: Sequence[Metric]) -> dict[str, float | str | None]:
    """Returns metrics of one protocol for a line of metrics.jsonl: the value of each under its
    name, the standard errors under `NAME stderr` and `NAME stderr_rows`, and the protocol."""
    line: dict[str, float | str | None] = {}
    for m in metrics:
        line |= {m.name: m.value, f"{m.name} stderr": m.stderr}
        line |= {f"{m.name} stderr_rows": m.stderr_rows, "protocol": m.protocol}
    return line


def table(metrics: Sequence[Metric]) -> str:
    """Returns metrics as text of at most 80 columns: each protocol once, above its numbers.

    "+- noise" and "+- sequences" are the standard errors `stderr` and `stderr_rows`.
    """
    lines = []
    for protocol, group in groupby(metrics, key=lambda metric: metric.protocol):
        lines += textwrap.wrap(f"{protocol}:", 80)
        rows = [(m.name, m.value, m.stderr, m.stderr_rows) for m in group]
        if any(error is not None for _, _, *errors in rows for error in errors):
            lines.append(f"{'+- noise':>50}{'+- sequences':>15}")
        for name, *numbers in rows:
            cells = ("" if x is None else f"{x:.4f}" for x in numbers)
            value, noise, sequences = cells
            lines.append(f"  {name:24s} {value:>12} {noise:>10}{sequences:>15}".rstrip())
    return "\n".join(lines)


def names(units: Iterable[str], loss_name: str = "nats per token") -> list[str]:
    """Returns the names of metrics that are better the lower they are: of those of `summarise`,
    with those per unit of text; or the `loss_name` of an objective that predicts no tokens."""
    if loss_name != "nats per token":
        return [loss_name]
    return ["nats per token", *(f"bits per {unit}" for unit in units), "perplexity"]


def spread_of_rows(sums: np.ndarray, tokens: np.ndarray) -> float | None:
    """Returns the standard error over sequences of the total of `sums`, by row, where its ratio to
    that of `tokens` is what is estimated; None for fewer than two rows with tokens."""
    scored = tokens > 0
    if scored.sum() < 2:
        return None
    # The residuals of each row from the common mean.
    residual = sums[scored] - sums.sum() / tokens.sum() * tokens[scored]
    return math.sqrt(scored.sum() / (scored.sum() - 1) * np.square(residual).sum())


def summarise(
    bound: np.ndarray,
    count: np.ndarray,
    *,
    protocol: str,
    is_exact: bool = False,
    units: dict[str, float] | None = None,
    noise: float | None = None,
    is_below: bool = False,
) -> list[Metric]:
    """Returns metrics from the sums by pass and row, both `[passes rows]`.

    `noise` is the standard error of the sum over all rows, by default that of the mean of the
    passes. `units` has the size of the evaluated text by unit ("byte", "character"). Raises
    InputError if the sum is negative, as it is then no bound, unless it is one from below
    (`is_below`).
    """
    tokens = int(count[0].sum())
    if tokens == 0:
        raise ValueError("no token to evaluate")
    passes = bound.sum(axis=1)
    nats = passes.mean()
    if nats / tokens < -SLACK and not is_below:
        raise InputError(
            f"the loss is {nats / tokens:.4g} nats per token, and a bound on a negative"
            " log-likelihood of tokens is at least 0: the schedule, process or objective is wrong"
        )
    if noise is None and not is_exact and len(passes) > 1:
        noise = passes.std(ddof=1) / math.sqrt(len(passes))
    spread = spread_of_rows(bound.mean(axis=0), count[0])

    def metric(name: str, scale: float, n: float, value: float | None = None) -> Metric:
        def times(x: float | None) -> float | None:
            return None if x is None else float(x * scale)

        value = float(nats * scale) if value is None else value
        return Metric(name, value, times(noise), times(spread), n, protocol)

    out = [metric("nats per token", 1 / tokens, tokens)]
    for unit, n in (units or {}).items():
        out.append(metric(f"bits per {unit}", 1 / (math.log(2) * n), n))
    perplexity = math.exp(min(nats / tokens, 700.0))
    # Errors of exp(x) are exp(x) times those of x.
    out.append(metric("perplexity", perplexity / tokens, tokens, value=perplexity))
    return out
