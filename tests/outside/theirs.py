"""Another package, which brings a schedule and a sampler; found by its entry points."""

from dataclasses import dataclass

from mdlm.samplers import Ancestral
from mdlm.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Theirs(Schedule):
    """alpha = 1 - t^power."""

    power: float = 1.0

    def alpha(self, t, x_0=None):
        return 1 - t**self.power


@dataclass(frozen=True, kw_only=True)
class FewSteps(Ancestral):
    """Ancestral sampling in four steps; its entry point has another name."""

    steps: int = 4
