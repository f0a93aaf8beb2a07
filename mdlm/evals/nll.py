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

from mdlm.objectives.base import Objective

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


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How a split is scored.

    Args:
        passes: independent passes over the split (1 suffices where nothing is drawn).
        batch_size: rows scored at a time (0: the training batch).
        split: the split that `mdlm eval` scores unless told otherwise.
        objective: what is reported, where it is not what was trained: a bound for a network that
            trained on something else, or another protocol.
        ngrams: also score count tables of the training split, which a network should beat.
    """

    passes: int = 4
    batch_size: int = 0
    split: str = "valid"
    objective: Objective | None = None
    ngrams: bool = False

    def __post_init__(self):
        if self.passes < 1 or self.batch_size < 0:
            raise ValueError(f"passes={self.passes}, batch_size={self.batch_size}")

    def score(
        self,
        score: Score,
        batches: Batches,
        *,
        rows: int,
        seed: int,
        report: Report = lambda done, total: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Runs the passes. Returns bound and count by pass and row, `[passes rows]`, float64."""
        bound = np.zeros((self.passes, rows))
        count = np.zeros((self.passes, rows))
        done = 0
        for number in range(self.passes):
            deal = np.random.default_rng((seed, number)).permutation(rows).astype(np.int32)
            for batch in batches():
                place = np.asarray(batch["row"])
                filled = np.asarray(batch["loss_mask"]).any(axis=-1)
                nats, tokens = score(number, {**batch, "row": deal[place]})
                bound[number, place[filled]] = nats[filled]
                count[number, place[filled]] = tokens[filled]
                done += int(filled.sum())
                report(done, rows * self.passes)
        return bound, count


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
