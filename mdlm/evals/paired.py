"""Differences of two runs on the same rows, with the same noise, and their errors.

    D = sum_r a_r / N_a - sum_r b_r / N_b        a_r, b_r: nats of row r, N: tokens scored

Rows are easy or hard for both runs, and at high noise both lose more, so that the two values of a
row vary together, and their difference varies less. With e_r the residual of row r,
(a_r - A n_r) / N_a - (b_r - B m_r) / N_b, where A and B are the nats per token of each run and n_r
and m_r the tokens, the standard error over R rows is sqrt(R / (R - 1) sum_r e_r^2); that of
unpaired runs adds the variances of both.
"""

import math
from dataclasses import dataclass

import numpy as np

from mdlm.data.dataset import Dataset
from mdlm.evals.scorer import Sums


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Nats per token of run a minus those of run b, over `rows` rows.

    `stderr_rows` is the standard error over rows, `unpaired` the one that two separate evaluations
    would have, and `stderr` that of the noise, None if one pass was made. `tokens` are those scored
    by each.
    """

    value: float
    stderr_rows: float
    unpaired: float
    stderr: float | None
    rows: int
    tokens: tuple[int, int]


def difference(a: Sums, b: Sums) -> Difference:
    """Returns the difference of two evaluations of the same rows, with the same draws, in as many
    passes."""
    values, residuals, tokens = zip(*map(_residuals, (a, b)), strict=True)
    many = len(residuals[0])

    def error(of: np.ndarray) -> float:
        return math.sqrt(many / (many - 1) * np.square(of).sum())

    by_pass = a.bound.sum(axis=1) / tokens[0] - b.bound.sum(axis=1) / tokens[1]
    drawn = len(by_pass)
    noise = None if drawn == 1 else float(by_pass.std(ddof=1)) / math.sqrt(drawn)
    return Difference(
        value=values[0] - values[1],
        stderr_rows=error(residuals[0] - residuals[1]),
        unpaired=math.hypot(*map(error, residuals)),
        stderr=noise,
        rows=many,
        tokens=(tokens[0], tokens[1]),
    )


def _residuals(sums: Sums) -> tuple[float, np.ndarray, int]:
    """Returns nats per token, the residual of each row's share of it, and the tokens."""
    bound, count = sums.bound.mean(axis=0), sums.count[0]
    tokens = count.sum()
    value = bound.sum() / tokens
    return float(value), (bound - value * count) / tokens, int(tokens)


def incomparable(a: Dataset, b: Dataset, split: str) -> str | None:
    """Says why two runs' values of a split are not of the same rows; None if they are."""
    if split not in a.splits or split not in b.splits:
        return f"one of them has no {split} split; imported networks have no text of their own"
    if a.tokenizer.fingerprint != b.tokenizer.fingerprint:
        return "their tokenizers differ, so that neither tokens nor rows are the same"
    if getattr(a, split).text_fingerprint != getattr(b, split).text_fingerprint:
        return f"their texts of the {split} split differ"
    mine, theirs = (getattr(one, split).rows for one in (a, b))
    if (mine.length, len(mine)) != (theirs.length, len(theirs)):
        return (
            f"their rows differ: {len(mine)} of {mine.length} tokens, and {len(theirs)} of"
            f" {theirs.length}"
        )
    first = np.arange(min(len(mine), 8))
    if not np.array_equal(mine.take(first).tokens, theirs.take(first).tokens):
        return "their rows hold other tokens, as they are cut in another way"
    return None
