"""A random law on a few tokens and symbols, everything about it enumerated in float64.

What the exact tests compare with: entropies and informations of the law, and its true posterior
as a network. New schedules and objectives join the lists at the end and inherit the tests.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np

from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.objectives.llada import LLaDA
from mdlm.objectives.masked_count import OrderAgnostic
from mdlm.objectives.nelbo import Nelbo
from mdlm.schedules.change_of_variables import ChangeOfVariables
from mdlm.schedules.closed_form import Cosine, CosineSquared, Geometric, LinearSigma, LogLinear
from mdlm.schedules.md4 import OneMinusSine, Polynomial
from mdlm.times import IID
from mdlm.types import Batch, DenseLogits


@dataclass(frozen=True)
class Law:
    """p over sequences of `length` tokens of `symbols` symbols; the mask is the id after them."""

    length: int = 3
    symbols: int = 3
    seed: int = 0

    @property
    def mask_id(self) -> int:
        return self.symbols

    @cached_property
    def sequences(self) -> np.ndarray:
        return np.array(list(itertools.product(range(self.symbols), repeat=self.length)))

    @cached_property
    def p(self) -> np.ndarray:
        return np.random.default_rng(self.seed).dirichlet(np.full(len(self.sequences), 0.5))

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

    @cached_property
    def _posterior(self) -> np.ndarray:
        """p(x_i = v | z) for every z, indexed by z's digits in base symbols + 1."""
        base = self.symbols + 1
        table = np.zeros((base**self.length, self.length, base))
        for number, z in enumerate(itertools.product(range(base), repeat=self.length)):
            z = np.array(z)
            fits = ((self.sequences == z) | (z == self.mask_id)).all(axis=1)
            weight = np.where(fits, self.p, 0.0)
            for i in range(self.length):
                for v in range(self.symbols):
                    table[number, i, v] = weight[self.sequences[:, i] == v].sum() / weight.sum()
        return table

    def denoise(self, inputs, *, key=None) -> DenseLogits:
        """The true posterior, as a network."""
        digits = (self.symbols + 1) ** jnp.arange(self.length)[::-1]
        number = (inputs.tokens * digits[None]).sum(-1)
        posterior = jnp.asarray(self._posterior, jnp.float32)[number]
        return DenseLogits(jnp.log(jnp.maximum(posterior, 1e-30)))

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

# Objectives whose expected bound is the law's entropy, where alpha(0) = 1 and alpha(1) = 0.
TIGHT = {
    "nelbo": Nelbo(),
    "nelbo, iid times": Nelbo(times=IID()),
    "nelbo, importance": Nelbo(importance=True),
    "nelbo, late reconstruction": Nelbo(t_min=0.01),
    "discrete, 500 steps": DiscreteNelbo(steps=500),
    "order-agnostic": OrderAgnostic(),
    "llada": LLaDA(),
}
