"""What the training loop tells its caller: each event has the `step` after which it happened."""

from dataclasses import dataclass

from mdlm.evals.nll import Metric
from mdlm.profiling.profile import Profile
from mdlm.train.guard import Spike


@dataclass(frozen=True)
class Began:
    """Before the first step: the step it starts from, and the number of parameters."""

    step: int
    steps: int
    parameters: int
    devices: int


@dataclass(frozen=True)
class Stepped:
    """After a logged step: its metrics, and the speed since the last one (see `Meter`)."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Evaluated:
    """After an evaluation of `split`: the validation split, if the data have one."""

    step: int
    split: str
    metrics: list[Metric]


@dataclass(frozen=True)
class Spiked:
    """The loss of a logged step was a spike. The run rewinds to step `back_to`, if not None."""

    step: int
    spike: Spike
    back_to: int | None


@dataclass(frozen=True)
class Profiled:
    """The requested steps are traced, up to this one."""

    step: int
    profile: Profile


@dataclass(frozen=True)
class Saved:
    """A checkpoint of `step` is being written."""

    step: int


@dataclass(frozen=True)
class Stopped:
    """The run was stopped before its last step, and its state is saved."""

    step: int


@dataclass(frozen=True)
class Ended:
    """The run ended before its last step because its settings say so, and its state is saved.

    `why` is the reason, and how the run goes on. `best` is the step of the best checkpoint, if it
    is another one.
    """

    step: int
    why: str
    best: int | None


Event = Began | Stepped | Evaluated | Spiked | Profiled | Saved | Stopped | Ended
