"""Optimizers as components.

A learning rate rises linearly from 0 over `warmup_steps` and then stays ("constant"), falls along
half a cosine to the fraction `final` of its peak ("cosine"), or stays and falls linearly to that
fraction over the last fraction `cooldown` of the run ("wsd": warm-up, stable, decay).
"""

import abc
import math
from dataclasses import dataclass
from typing import Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from mdlm.names import KERNEL, MODULATION, STACK
from mdlm.types import ArrayTree

__all__ = ["AdamW", "Muon", "Optimizer"]


@dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """A learning rate by step, clipping by the gradient's global norm, and an update rule.

    `learning_rate` is the peak of the learning rate. `schedule` is its course after the warm-up.
    `clip_norm=0` turns clipping off. `weight_decay` is the rate at which matrices decay, not biases
    and norms. `b1` and `b2` are the decays of AdamW's first and second moments, and `eps` is added
    to the root of the second.
    `momentum_dtype` is the dtype of first moments: "bfloat16" saves 2 of the 20 bytes of a
    parameter (itself, its gradient, its EMA, the two moments of AdamW). Second moments stay
    float32, because bfloat16 would round their slow changes away.
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
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: must be a number above 0")
        if not 0 <= self.final <= 1 or not 0 <= self.cooldown <= 1:
            raise ValueError(
                f"final={self.final}, cooldown={self.cooldown}: each must be between 0 and 1"
            )
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"b1={self.b1}, b2={self.b2}: each must be at least 0 and below 1")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps}: must be a number above 0")
        if not (self.warmup_steps >= 0 and self.weight_decay >= 0 and self.clip_norm >= 0):
            raise ValueError("warmup_steps, weight_decay and clip_norm: each must be at least 0")

    def rate(self, steps: int) -> optax.Schedule:
        """Returns the learning rate by step of a run of `steps` steps; a warm-up begins at 0."""
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
        """Returns the optax transformation for a run of `steps` steps."""
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        return optax.chain(clip, self.direction(self.rate(steps)))

    @abc.abstractmethod
    def direction(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Returns the transformation of clipped gradients into updates."""

    def adam(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Returns AdamW with these settings at `rate`, which may differ from `learning_rate`."""
        return optax.adamw(
            rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            mu_dtype=self.momentum_dtype,
            weight_decay=self.weight_decay,
            mask=decayed if self.weight_decay else None,
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW (arXiv:1711.05101), the optimizer of the papers."""

    def direction(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return self.adam(rate)


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else.

    Muon orthogonalises the momentum of each hidden matrix before applying it, layer by layer;
    `momentum` is the decay of that momentum.
    AdamW updates embedding, head, modulation, biases and norms, at `adam_rate` times
    `learning_rate`: Muon's learning rate is much larger than AdamW's.
    """

    learning_rate: float = 0.02
    momentum: float = 0.95
    adam_rate: float = 0.15

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.momentum < 1 or not self.adam_rate > 0:
            raise ValueError(
                f"momentum={self.momentum}, adam_rate={self.adam_rate}: momentum must be at least 0"
                " and below 1, adam_rate above 0"
            )

    def direction(self, rate: optax.Schedule) -> optax.GradientTransformation:
        def layers(params: ArrayTree) -> ArrayTree:
            return jax.tree.map(
                lambda a: MuonDimensionNumbers((a.ndim - 2,), (a.ndim - 1,)), params
            )

        muon = optax.chain(
            scale_by_muon(
                beta=self.momentum,
                weight_dimension_numbers=layers,
                mu_dtype=self.momentum_dtype,
            ),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        adam = self.adam(lambda step: self.adam_rate * rate(step))
        return optax.multi_transform({"muon": muon, "adam": adam}, hidden)


def decayed(params: ArrayTree) -> ArrayTree:
    """Returns True at matrices, which weight decay acts on.

    An array of stacked layers has one dimension more than that of a single layer.
    """

    def is_matrix(path, array) -> bool:
        return array.ndim - (STACK in _names(path)) >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def hidden(params: ArrayTree) -> ArrayTree:
    """Labels the hidden matrices of the blocks, stacked `[n i o]`, or `[n e i o]` with experts,
    "muon"; all else "adam".

    Their names tell them apart (`mdlm.names`). The modulation's matrix, which starts at zero and
    reads the noise level, is not among them.
    """

    def label(path, array) -> str:
        names = _names(path)
        is_matrix = names[-1] == KERNEL and array.ndim >= 3
        is_hidden = is_matrix and STACK in names and MODULATION not in names
        return "muon" if is_hidden else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _names(path: tuple) -> list[str]:
    return [str(getattr(part, "key", "")) for part in path]
