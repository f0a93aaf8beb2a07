"""A random distribution on a few tokens and symbols, everything about it enumerated in float64.

What the exact tests compare with: its entropies and informations, and its true posterior as a
network. New schedules and objectives join the lists at the end and inherit the tests.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np

from mdlm.evals.oracles import Enumerated
from mdlm.objectives.complementary import Complementary
from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.objectives.llada import LLaDA
from mdlm.objectives.masked_count import OrderAgnostic
from mdlm.objectives.nelbo import Nelbo
from mdlm.objectives.positional import Positional
from mdlm.schedules.change_of_variables import ChangeOfVariables
from mdlm.schedules.closed_form import Cosine, CosineSquared, Geometric, LinearSigma, LogLinear
from mdlm.schedules.md4 import OneMinusSine, Polynomial
from mdlm.schedules.positions import ARDiffusion, LeftFirst, RandomOffsets
from mdlm.times import IID
from mdlm.types import Batch


@dataclass(frozen=True)
class Distribution(Enumerated):
    """The same, with entropies, informations and batches."""

    concentration: float = 0.5

    @cached_property
    def entropy(self) -> float:
        return float(-(self.p * np.log(self.p)).sum())

    @cached_property
    def hidings(self) -> np.ndarray:
        """All patterns of masked positions, [n l]."""
        return np.array(list(itertools.product([False, True], repeat=self.length)))

    def remaining(self, alpha: float) -> float:
        """H(x | z_t): what is still unknown when each token is visible with probability alpha."""
        total = 0.0
        for hidden in self.hidings:
            share = np.prod(np.where(hidden, 1 - alpha, alpha))
            groups: dict[tuple, float] = {}
            for x, p in zip(self.sequences, self.p, strict=True):
                seen = tuple(x[~hidden])
                groups[seen] = groups.get(seen, 0.0) + p
            seen_entropy = -sum(p * np.log(p) for p in groups.values() if p > 0)
            total += share * (self.entropy - seen_entropy)
        return total

    def batch(self, tokens: np.ndarray) -> Batch:
        n = len(tokens)
        return Batch(
            tokens=jnp.asarray(tokens, jnp.int32),
            loss_mask=jnp.ones(tokens.shape, bool),
            is_valid=jnp.ones(tokens.shape, bool),
            row=jnp.arange(n),
            rows=jnp.asarray(n),
        )


SCHEDULES = {
    "log-linear": LogLinear(),
    "log-linear, eps 0": LogLinear(eps=0.0),
    "cosine": Cosine(),
    "cosine, eps 0": Cosine(eps=0.0),
    "cosine squared": CosineSquared(),
    "cosine squared, eps 0": CosineSquared(eps=0.0),
    "polynomial 0.5": Polynomial(power=0.5),
    "polynomial 2": Polynomial(power=2.0),
    "polynomial 3, eps": Polynomial(power=3.0, eps=1e-4),
    "one minus sine": OneMinusSine(),
    "one minus sine, eps": OneMinusSine(eps=1e-4),
    "geometric": Geometric(),
    "linear in sigma": LinearSigma(),
    "change of variables": ChangeOfVariables(base=LogLinear()),
    "change of variables, linear": ChangeOfVariables(base=LinearSigma()),
}

# Objectives whose expected bound is the entropy, where alpha(0) = 1 and alpha(1) = 0.
TIGHT = {
    "nelbo": Nelbo(),
    "nelbo, iid times": Nelbo(times=IID()),
    "nelbo, importance": Nelbo(importance=True),
    "nelbo, late reconstruction": Nelbo(t_min=0.01),
    "discrete, 500 steps": DiscreteNelbo(steps=500),
    "order-agnostic": OrderAgnostic(),
    "complementary masks": Complementary(),
    "llada": LLaDA(),
    "left first": Positional(by=LeftFirst(width=0.4)),
    "segments, left first": Positional(by=LeftFirst(width=0.7, segment=2)),
    "random offsets": Positional(by=RandomOffsets(width=0.5)),
    "AR-Diffusion": Positional(by=ARDiffusion()),
}
