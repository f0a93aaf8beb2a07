"""The log-likelihood of a text with its standard error, how often it is measured, and tables."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdlm.errors import InputError
from mdlm.evals.nll import Metric, summarise, table


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """The log-likelihood of `tokens` tokens in nats, or a lower bound on it, as `protocol` says.

    `stderr` is the standard error of the Monte Carlo estimate from `passes` passes of the network;
    None if the value is exact.
    """

    value: float
    stderr: float | None
    tokens: int
    passes: int
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How often pairs are scored.

    Args:
        passes: network passes for each pair, an even number.
        sure: repeat them until the standard error of each pair is at most this, in nats.
        most: the passes of a pair after which it is not scored again.
    """

    passes: int = 32
    sure: float | None = None
    most: int = 2**14

    def __post_init__(self):
        if self.passes < 2 or self.passes % 2:
            raise InputError(
                f"passes={self.passes}: must be even and at least 2, as each noise level is drawn"
                " twice, which gives the standard error"
            )
        if self.sure is not None and not self.sure > 0:
            raise InputError(f"sure={self.sure}: must be above 0")


def totals(found: Sequence[LogLikelihood]) -> list[Metric]:
    """Returns the metrics of all responses together. Raises InputError as `nll.summarise`."""
    errors = [one.stderr for one in found if one.stderr is not None]
    return summarise(
        -np.array([[one.value for one in found]]),
        np.array([[one.tokens for one in found]]),
        protocol=found[0].protocol,
        noise=math.sqrt(sum(error**2 for error in errors)) if errors else None,
    )


def table_of(names: Sequence[str], found: Sequence[LogLikelihood]) -> str:
    """Returns the log-likelihoods as text, a line for each under its name, and the metrics of all
    together."""
    wide = max(len("pair"), *(len(name) for name in names))
    lines = textwrap.wrap(f"{found[0].protocol}, nats:", 80)
    lines.append(f"  {'pair':{wide}} {'log p':>12} {'+- noise':>10} {'tokens':>8} {'passes':>8}")
    for name, one in zip(names, found, strict=True):
        error = "" if one.stderr is None else f"{one.stderr:.4f}"
        lines.append(
            f"  {name:{wide}} {one.value:12.4f} {error:>10} {one.tokens:8d} {one.passes:8d}"
        )
    return "\n".join(lines) + "\n" + table(totals(found))
