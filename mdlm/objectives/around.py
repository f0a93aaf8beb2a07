"""Objectives that change how another one is trained. The other one is what is reported."""

from dataclasses import dataclass, replace
from typing import Any, Self

from mdlm.diffusion import limits_attention
from mdlm.objectives.base import Objective
from mdlm.objectives.nelbo import Nelbo
from mdlm.types import Vocab


@dataclass(frozen=True, kw_only=True)
class Around(Objective):
    """An objective around another one, of a network whose attention can be limited.

    Args:
        objective: the other one, a diffusion objective of single rows.
    """

    objective: Objective = Nelbo()

    @property
    def protocol(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.objective.protocol

    def incompatibility(self, process: Any, parameterization: Any, network: Any = None):
        inside = self.objective
        if inside.rows_together > 1 or inside.needs_reference or inside.own_texts is not None:
            return f"objective={type(inside).__name__}(): must be one of single rows of data"
        reason = inside.incompatibility(process, parameterization, network)
        return reason or limits_attention(network)

    def reported(self) -> Objective:
        return self.objective.reported()

    def with_vocab(self, vocab: Vocab) -> Self:
        return replace(self, objective=self.objective.with_vocab(vocab))
