"""When a run ends before its last step: no better validation for long, or its time is over.

The decision follows from values that are saved with the state, so that a run that was stopped or
killed ends as if nothing had happened. A run that has ended so goes on if the setting that ended it
is raised. All processes decide the same: they use the numbers and the clock of process 0.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mdlm.cluster import process_group
from mdlm.config.components import nearest
from mdlm.errors import InputError
from mdlm.evals.nll import names
from mdlm.experiment.evaluation import SELECTS
from mdlm.experiment.experiment import Training

now = time.perf_counter


class Stopping:
    """Counts validations without an improvement, and the time of training.

    Args:
        settings: the run's settings.
        memory: the value of `memory` when the state was saved. Validations that were compared by
            another metric are forgotten.
    """

    best: tuple[int, float] | None = None
    """Step and value of the best validation so far."""

    def __init__(self, settings: Training, memory: Mapping[str, Any]):
        self.settings = settings
        self.in_a_row = 0
        past = memory.get("validations")
        if past and past["by"] == settings.best:
            self.in_a_row = past["in_a_row"]
            self.best = (past["step"], past["value"]) if "value" in past else None
        self._seconds, self._since = memory.get("seconds", 0.0), None
        self._is_over = memory.get("is_over", False) and self._seconds >= 60 * settings.minutes

    @property
    def memory(self) -> dict[str, Any]:
        """Values saved with the state."""
        past: dict[str, Any] = {"by": self.settings.best, "in_a_row": self.in_a_row}
        if self.best is not None:
            past |= {"step": self.best[0], "value": self.best[1]}
        return {"validations": past, "seconds": self.seconds, "is_over": self._is_over}

    @property
    def seconds(self) -> float:
        """Seconds of training, those of earlier starts of the run included."""
        return self._seconds + (0.0 if self._since is None else now() - self._since)

    def start(self) -> None:
        """Starts the clock, when the first step of a start is about to be made."""
        self._since = now()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for what is not training."""
        self._seconds, self._since = self.seconds, None
        yield
        self.start()

    def validated(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Counts a validation. Returns its values on process 0, those that are finite.

        Raises InputError if the metric that selects is not among the values.
        """
        name = self.settings.best
        if name not in values:
            raise InputError(f"train.best={name!r:.80}: this validation has {', '.join(values)}")
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        finite = process_group.broadcast(lambda: finite)
        self.in_a_row += 1
        if name in finite and (self.best is None or finite[name] < self.best[1]):
            self.best, self.in_a_row = (step, finite[name]), 0
        return finite

    def is_best(self, step: int) -> bool:
        """Whether patience waits for a better validation than the one after this step."""
        return bool(self.settings.patience) and self.best is not None and self.best[0] == step

    def look_at_clock(self) -> None:
        """Decides whether the time of the run is over."""
        if self.settings.minutes:
            is_over = self.seconds >= 60 * self.settings.minutes
            self._is_over = process_group.broadcast(lambda: is_over)

    @property
    def why(self) -> str:
        """Why the run ends, and how it goes on; empty while it does not end."""
        if 0 < self.settings.patience <= self.in_a_row:
            n, s, was = self.in_a_row, "s", "were"
            if n == 1:
                s, was = "", "was"
            if self.best is None:
                reason = f"{n} validation{s} in a row {was} not finite"
            else:
                step, value = self.best
                reason = (
                    f"{n} validation{s} in a row {was} no better than step {step}"
                    f" ({self.settings.best} {value:.4f})"
                )
            return f"{reason}; to go on: a larger --train.patience"
        if self._is_over and self.settings.minutes:
            over = f"{self.settings.minutes:g} minutes of training are over"
            return f"{over}; to go on: a larger --train.minutes"
        return ""


def check(
    settings: Training,
    split: str,
    units: Sequence[str],
    *,
    is_whole: bool,
    loss_name: str = "nats per token",
) -> None:
    """Raises InputError if no validation will report the metric that selects, or if none selects.

    `split` is evaluated during training, `is_whole` if all of its rows are; metrics per unit of
    text are reported then. `loss_name` is what the reported objective calls its loss.
    """
    if settings.patience and split != SELECTS:
        raise InputError(
            f"train.patience={settings.patience}: the data have no validation split to compare;"
            " give them one, or set it to 0"
        )
    name, always, of_all = settings.best, names((), loss_name), names(units, loss_name)
    if name in always or name in of_all and is_whole:
        return
    if name in of_all:
        raise InputError(
            f"train.best={name!r}: reported where the whole split is evaluated; give"
            " --train.eval_rows 0"
        )
    raise InputError(f"train.best={name!r:.80}: no metric of a validation{nearest(name, of_all)}")
