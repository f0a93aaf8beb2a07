"""The numbers of a set of generated texts, each with its standard error over the texts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mdlm.evals.generated.halves import Chosen, error
from mdlm.evals.generated.judge import Judged, Report
from mdlm.evals.generated.mauve import Mauve
from mdlm.evals.generated.statistics import Distinct, SelfBleu, repetition, words

UnitsOf = Literal["words", "tokens"]
"""What distinct n-grams, repetition and self-BLEU count: words and punctuation marks, or tokens of
the judge."""
DISTINCT, REPEATED = (1, 2, 3), 4


@dataclass(frozen=True)
class Measure:
    """A number and its standard error over the texts (`halves`); None where there is none."""

    value: float | None
    stderr: float | None = None


def measures(
    found: Judged,
    real: Judged | None = None,
    *,
    units: UnitsOf = "words",
    report: Report = lambda done, of: None,
) -> dict[str, Measure]:
    """Returns the numbers of judged texts by name.

    `real` are real texts, judged by the same judge, for MAUVE. Raises InputError if there are fewer
    than two texts.
    """
    own = found.read if units == "tokens" else words(["\n".join(text) for text in found.texts])
    repeated = np.array([repetition(text, REPEATED) for text in own])

    def ratio(above: np.ndarray, below: np.ndarray, chosen: Chosen) -> float:
        total = below[chosen].sum()
        return float(above[chosen].sum() / total) if total else math.nan

    def per_token(chosen: Chosen) -> float:
        return ratio(found.nats, found.tokens, chosen)

    statistics: dict[str, Callable[[Chosen], float]] = {
        "nats per token": per_token,
        "perplexity": lambda chosen: math.exp(min(per_token(chosen), 700.0)),
        "bits per byte": lambda chosen: ratio(found.nats / math.log(2), found.bytes, chosen),
        "entropy": lambda chosen: float(found.entropy[chosen].mean()),
        **{f"distinct-{n}": Distinct(own, n) for n in DISTINCT},
        f"repetition-{REPEATED}": lambda chosen: float(repeated[chosen].mean()),
        "self-BLEU": SelfBleu(own),
    }
    out, of = {}, len(statistics) + 1
    for number, (name, statistic) in enumerate(statistics.items()):
        report(number, of)
        value = statistic(np.ones(len(own), bool))
        stderr = error(statistic, len(own))
        out[name] = Measure(value, stderr) if math.isfinite(value) else Measure(None)
    report(of - 1, of)
    out["MAUVE"] = _mauve(found, real)
    report(of, of)
    return out


def _mauve(found: Judged, real: Judged | None) -> Measure:
    if real is None or found.features is None or real.features is None:
        return Measure(None)
    compared = Mauve(found.features, real.features)
    return Measure(compared.value, compared.stderr())
