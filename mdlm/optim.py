"""Optimizers: what is minimised how, as components.

A learning rate rises linearly from 0 over `warmup_steps` and then stays ("constant"), falls along
half a cosine to `final` of its peak ("cosine"), or stays and falls linearly to `final` over the
last `cooldown` share of the run ("wsd": warm-up, stable, decay).
"""

import abc
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
    """A learning rate over the steps, clipping by the gradient's global norm, and a direction.

    `clip_norm=0` turns clipping off. Weight decay acts on matrices, not on biases and norms.
    `momentum_dtype` is that in which first moments are kept: "bfloat16" saves 2 of a parameter's
    20 bytes (itself, its gradient, its average, AdamW's two moments). Second moments stay float32,
    whose slow average bfloat16 would round away.
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
        return optax.chain(clip, self.direction(self.rate(steps)))

    @abc.abstractmethod
    def direction(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """From clipped gradients to updates."""

    def adam(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """AdamW with these settings, at a rate that may be another than the optimizer's own."""
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
    """Muon (Jordan et al. 2024) on the blocks' matrices, AdamW on all else.

    The momentum of each hidden matrix is orthogonalised before it is applied, layer by layer of a
    stack. Embedding, head, modulation, biases and norms go by AdamW at `adam_rate` times the
    learning rate, which is Muon's own and much larger than AdamW's.
    """

    learning_rate: float = 0.02
    momentum: float = 0.95
    adam_rate: float = 0.15

    def direction(self, rate: optax.Schedule) -> optax.GradientTransformation:
        def layers(params: ArrayTree) -> ArrayTree:
            return jax.tree.map(
                lambda _: MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2,)), params
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
    """True at matrices. Arrays of stacked layers have one dimension more than their layer's."""

    def is_matrix(path, array) -> bool:
        return array.ndim - (STACK in _names(path)) >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def hidden(params: ArrayTree) -> ArrayTree:
    """ "muon" at the blocks' matrices between hidden states, stacked `[n i o]`; "adam" elsewhere.

    They are known by the names that networks agree on (`mdlm.names`). The modulation's matrix,
    which starts at zero and reads the noise level, is not one of them.
    """

    def label(path, array) -> str:
        names = _names(path)
        is_matrix = names[-1] == KERNEL and array.ndim == 3
        is_hidden = is_matrix and STACK in names and MODULATION not in names
        return "muon" if is_hidden else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _names(path: tuple) -> list[str]:
    return [str(getattr(part, "key", "")) for part in path]
