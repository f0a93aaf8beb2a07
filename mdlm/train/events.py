"""What the training loop tells its caller: each event has the `step` after which it happened."""

from dataclasses import dataclass

from mdlm.config.component_text import to_text
from mdlm.evals.nll import Metric
from mdlm.experiment.stages import Stage
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
class Entered:
    """The next step is the first of stage `number` of the experiment's `stages`, counted from 0, or
    the first after them, where `stage` is None."""

    step: int
    number: int
    stage: Stage | None

    @property
    def words(self) -> str:
        """Says what the next steps train."""
        if self.stage is None:
            return "the stages are over, and the experiment's own network and objective are trained"
        parts = ((n, getattr(self.stage, n)) for n in ("network", "objective"))
        what = ", ".join(f"{name} {to_text(part)}" for name, part in parts if part is not None)
        end = f"to {self.stage.until:.0%} of the steps"
        return f"stage {self.number + 1}, {end}: {what or 'no change'}"


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


Event = Began | Entered | Stepped | Evaluated | Spiked | Profiled | Saved | Stopped | Ended
