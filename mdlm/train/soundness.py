"""Which states may be kept: those whose numbers are finite, and give a finite loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from etils import epath

from mdlm.errors import InputError
from mdlm.evals.scorer import Scorer
from mdlm.experiment.evaluation import Perplexity
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.finite import not_finite
from mdlm.train.step import State
from mdlm.types import ArrayTree

JUDGED = ("params", "ema")
"""The parts of a state that a network is evaluated with."""


@dataclass(frozen=True)
class Soundness:
    """Judges states on the first batch of a split, which `validation` names. `joined` gives the
    parameters of the network (`step.joiner`)."""

    scorer: Scorer
    validation: Perplexity
    joined: Callable[[State, ArrayTree], ArrayTree]

    def of(self, state: State) -> bool:
        """Whether parameters and EMA are finite and have a finite loss."""
        if not_finite({name: state[name] for name in JUDGED}):
            return False
        size = self.validation.batch_size or self.scorer.model.experiment.train.batch_size
        params = (self.joined(state, state[name]) for name in JUDGED)
        found = (self.scorer.run(own, self.validation, size) for own in params)
        return all(math.isfinite(metrics[0].value) for metrics in found)

    def newest(self, checkpoints: Checkpoints, abstract: State, base: State) -> epath.Path | None:
        """Returns the newest checkpoint that is sound, None if there is none. `base` is the part of
        a state that checkpoints do not hold."""
        part = {name: abstract[name] for name in JUDGED}
        for step in reversed(checkpoints.steps):
            try:
                is_sound = self.of({**checkpoints.restore_part(part, step), **base})
            except InputError:  # damaged
                continue
            if is_sound:
                return checkpoints.folder / str(step)
        return None


def given_up(in_a_row: int, step: int, sound: object | None) -> str:
    """Returns the message of a run that diverged: the reason, and the checkpoint that is left."""
    left = f"the last checkpoint with a finite loss is {sound}"
    return (
        f"{in_a_row} steps in a row, up to step {step}, had a loss, gradient or parameters that are"
        f" not finite and were skipped; {left if sound else 'no sound checkpoint was saved'}"
    )
