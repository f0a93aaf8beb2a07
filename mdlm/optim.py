"""Optimizers: what is minimised how, as components.

A learning rate rises linearly from 0 over `warmup_steps` and then stays ("constant"), falls along
half a cosine to `final` of its peak ("cosine"), or stays and falls linearly to `final` over the
last `cooldown` share of the run ("wsd": warm-up, stable, decay).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from mdlm.types import ArrayTree


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW with a warmed-up learning rate and clipping by the gradient's global norm.

    Weight decay acts on matrices (arrays of two or more dimensions without the stacked layers'),
    not on biases and norms. `clip_norm=0` turns clipping off.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 2500
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    final: float = 0.0
    cooldown: float = 0.2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} is not positive")
        if not 0 <= self.final <= 1 or not 0 <= self.cooldown <= 1:
            raise ValueError(f"final={self.final} and cooldown={self.cooldown} are shares, 0 to 1")
        if self.warmup_steps < 0 or self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("warmup_steps, weight_decay and clip_norm are not negative")

    def rate(self, steps: int) -> optax.Schedule:
        """Learning rate by step (0 at step 0 where there is a warm-up) of a run of `steps`."""
        peak, warmup = self.learning_rate, self.warmup_steps
        floor = peak * self.final
        if self.schedule == "cosine":
            after = optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha=self.final)
        elif self.schedule == "wsd":
            length = max(1, round(self.cooldown * steps))
            start = max(0, steps - length - warmup)
            after = optax.linear_schedule(peak, floor, length, transition_begin=start)
        else:
            after = optax.constant_schedule(peak)
        return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` steps."""
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        adam = optax.adamw(
            self.rate(steps),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decayed if self.weight_decay else None,
        )
        return optax.chain(clip, adam)


def decayed(params: ArrayTree) -> ArrayTree:
    """True at matrices. Arrays of stacked layers have one dimension more than their layer's."""
    def is_matrix(path, array) -> bool:
        stacked = any(getattr(part, "key", None) == "blocks" for part in path)
        return array.ndim - stacked >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)
