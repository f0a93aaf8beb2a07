"""Stages of training: steps at which another objective, or the network in another form, is trained.

    stages=(
        Stage(until=200, objective=Windowed(ahead=0)),
        Stage(until=400, objective=Windowed(ahead=16)),
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
        until: the number of steps made at the end of the stage. It begins where the one before it
            ends.
        network: the network in these steps, with the parameters of the experiment's (None: the
            experiment's). It may differ in what it attends to, in `block_size`, `shift`, `dropout`.
        objective: the objective in these steps (None: the experiment's).
    """

    until: int
    network: Network | None = None
    objective: Objective | None = None

    def __post_init__(self):
        if self.until < 1:
            raise ValueError(f"until={self.until}: must be at least 1")


def at(stages: tuple[Stage, ...], made: int) -> Stage | None:
    """Returns the stage of the step that follows `made` steps; None after the last stage."""
    return next((stage for stage in stages if made < stage.until), None)
