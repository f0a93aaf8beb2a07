"""Perplexity: an objective's bound (or exact likelihood) over a whole split.

A pass scores every token of the split once, with noise times stratified over all of its rows and
dealt to them at random. `passes` independent passes give the mean and its Monte-Carlo standard
error (their standard deviation / sqrt(passes)); the spread of the rows' own means gives the
standard error over sequences, which is about the split rather than about the noise.

    nats per token   sum of bounds / scored tokens          perplexity   exp of that
    bits per byte    sum of bounds / (ln 2 * bytes of the text that the tokens spell)
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

Score = Callable[[int, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
"""`(pass number, batch) -> (bound [b], count [b])`: sums over each row, nats and tokens."""

Batches = Callable[[], Iterable[dict[str, np.ndarray]]]

Report = Callable[[int, int], None]
"""`(rows scored, rows to score)`, over all passes."""


@dataclass(frozen=True)
class Metric:
    """A number, how sure it is, and how it was obtained.

    `stderr` is of the Monte-Carlo estimate, None where nothing is drawn or one pass was made;
    `stderr_rows` is over sequences; `n` is the number of tokens, bytes or characters under it.
    """

    name: str
    value: float
    stderr: float | None
    stderr_rows: float | None
    n: float
    protocol: str

    def __str__(self) -> str:
        mc = "" if self.stderr is None else f" +- {self.stderr:.4f} (noise)"
        rows = "" if self.stderr_rows is None else f" +- {self.stderr_rows:.4f} (sequences)"
        return f"{self.name:24s} {self.value:9.4f}{mc}{rows}   [{self.protocol}]"


def passes(
    score: Score,
    batches: Batches,
    *,
    count: int,
    rows: int,
    seed: int,
    report: Report = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores a split `count` times. Returns bounds (nats) and numbers of scored tokens, both by
    pass and row, `[passes rows]`, float64."""
    bound, tokens = np.zeros((count, rows)), np.zeros((count, rows))
    done = 0
    for number in range(count):
        deal = np.random.default_rng((seed, number)).permutation(rows).astype(np.int32)
        for batch in batches():
            row = np.asarray(batch["row"])
            filled = np.asarray(batch["loss_mask"]).any(axis=-1)
            nats, scored = score(number, {**batch, "row": deal[row]})
            bound[number, row[filled]] = nats[filled]
            tokens[number, row[filled]] = scored[filled]
            done += int(filled.sum())
            report(done, rows * count)
    return bound, tokens


def summarise(
    bound: np.ndarray,
    count: np.ndarray,
    *,
    protocol: str,
    is_exact: bool = False,
    units: dict[str, float] | None = None,
) -> list[Metric]:
    """Metrics from the sums by pass and row, both `[passes rows]`.

    `units` gives, per unit ("byte", "character"), how many the scored text has.
    """
    tokens = int(count[0].sum())
    if tokens == 0:
        raise ValueError("no token to score")
    passes = bound.sum(axis=1)
    nats = passes.mean()
    noise = None if is_exact or len(passes) == 1 else passes.std(ddof=1) / math.sqrt(len(passes))
    by_row, row_tokens = bound.mean(axis=0), count[0]
    scored = row_tokens > 0
    spread = None
    if scored.sum() > 1:
        # Standard error of a ratio of sums: residuals of each row from the common mean.
        residual = by_row[scored] - nats / tokens * row_tokens[scored]
        spread = math.sqrt(scored.sum() / (scored.sum() - 1) * np.square(residual).sum())

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
