"""Stages of training: steps in which another objective, or the network in another form, is trained.

    stages=(
        Stage(until=0.1, objective=Windowed(ahead=0)),
        Stage(until=0.3, objective=Windowed(ahead=16)),
    )

After the last stage, and in all that is evaluated, sampled and exported, the experiment's own
network and objective are used. All stages have the same parameters and optimizer. A step is
compiled for each of them.
"""

from dataclasses import dataclass

from mdlm.models.network import Network
from mdlm.objectives.base import Objective


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What some of a run's steps train.

    Args:
        until: the share of the run's steps (`train.steps`) at the end of the stage. It begins where
            the one before it ends.
        network: the network in these steps, with the parameters of the experiment's (None: the
            experiment's). It may differ in what it attends to, in `block_size`, `shift`, `dropout`.
        objective: the objective in these steps (None: the experiment's).
    """

    until: float
    network: Network | None = None
    objective: Objective | None = None

    def __post_init__(self):
        if not 0 < self.until <= 1:
            raise ValueError(
                f"until={self.until}: must be a share of the steps, above 0, at most 1"
            )


def at(stages: tuple[Stage, ...], made: int, steps: int) -> Stage | None:
    """Returns the stage of the step that follows `made` of `steps` steps; None after the last."""
    return next((stage for stage in stages if made < round(stage.until * steps)), None)
