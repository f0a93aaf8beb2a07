"""Distributions of short sequences that are known exactly, with their posterior as a network.

`Enumerated` is a random distribution over all sequences of a few tokens. `HiddenMarkov` is a hidden
Markov model over longer ones: its exact posterior p(x_i | visible tokens) comes from the forward
and backward recursions. Since such a network makes no errors, all error measured with it comes from
the sampler or the objective.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row, of_seed
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.score import Score
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler
from mdlm.samplers.loop import generate
from mdlm.samplers.state import Samples
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import DenseLogits, NetInput, Vocab


class Oracle(Protocol):
    """A distribution of sequences of `length` tokens 0..symbols-1 (the mask is the id after them),
    and its posterior as a network."""

    @property
    def name(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def symbols(self) -> int: ...

    def denoise(self, inputs: NetInput, *, key: Any = None) -> DenseLogits: ...

    def distance(self, tokens: np.ndarray) -> float:
        """Returns the total variation between the distribution and the frequencies in `tokens`."""
        ...

    def draw(self, rows: int, seed: int) -> np.ndarray:
        """Returns `rows` sequences drawn from the distribution itself."""
        ...


@dataclass(frozen=True)
class Enumerated:
    """A random distribution over all sequences of a few tokens, enumerated in float64.

    Its probabilities are drawn from a Dirichlet distribution of this `concentration`.
    """

    length: int = 3
    symbols: int = 3
    seed: int = 0
    name: str = "enumerated distribution, whole sequences"
    concentration: float = 0.4

    @property
    def mask_id(self) -> int:
        return self.symbols

    @cached_property
    def sequences(self) -> np.ndarray:
        return np.array(list(itertools.product(range(self.symbols), repeat=self.length)))

    @cached_property
    def p(self) -> np.ndarray:
        """The probability of each of `sequences`."""
        alpha = np.full(len(self.sequences), self.concentration)
        return np.random.default_rng(self.seed).dirichlet(alpha)

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

    def denoise(self, inputs: NetInput, *, key: Any = None) -> DenseLogits:
        """Returns the logits of the exact posterior, as a network would."""
        digits = (self.symbols + 1) ** jnp.arange(self.length)[::-1]
        number = (inputs.tokens * digits[None]).sum(-1)
        posterior = jnp.asarray(self._posterior, jnp.float32)[number]
        return DenseLogits(jnp.log(jnp.maximum(posterior, 1e-30)))

    def distance(self, tokens: np.ndarray) -> float:
        number = tokens @ self.symbols ** np.arange(self.length - 1, -1, -1)
        share = np.bincount(number, minlength=len(self.p)) / len(tokens)
        return 0.5 * float(np.abs(share - self.p).sum())

    def draw(self, rows: int, seed: int) -> np.ndarray:
        return self.sequences[np.random.default_rng(seed).choice(len(self.p), rows, p=self.p)]


@dataclass(frozen=True)
class HiddenMarkov:
    """A stationary hidden Markov model with random transitions and emissions."""

    length: int = 32
    symbols: int = 6
    states: int = 4
    seed: int = 1
    name: str = "hidden Markov model, neighbouring pairs"

    @cached_property
    def model(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distribution of the first state, transitions `[from to]`, emissions `[state token]`."""
        rng = np.random.default_rng(self.seed)
        moves = rng.dirichlet(np.full(self.states, 0.3), size=self.states)
        emits = rng.dirichlet(np.full(self.symbols, 0.3), size=self.states)
        stationary = np.linalg.matrix_power(moves, 10_000)[0]
        return stationary / stationary.sum(), moves, emits

    def denoise(self, inputs: NetInput, *, key: Any = None) -> DenseLogits:
        first, moves, emits = (jnp.asarray(x, jnp.float32) for x in self.model)
        seen = jnp.concatenate([emits.T, jnp.ones((1, self.states))])[inputs.tokens]
        seen = seen.swapaxes(0, 1)  # [l b state]: the likelihood of the visible token
        normal = lambda x: x / x.sum(-1, keepdims=True)

        def forward(before, here):
            after = normal((before * here) @ moves)
            return after, before

        def backward(after, here):
            before = normal((after * here) @ moves.T)
            return before, after

        start = jnp.broadcast_to(first, seen.shape[1:])
        _, past = jax.lax.scan(forward, start, seen)
        _, future = jax.lax.scan(backward, jnp.ones_like(start), seen, reverse=True)
        token = normal(past * future) @ emits
        return DenseLogits(jnp.log(jnp.pad(token.swapaxes(0, 1), ((0, 0), (0, 0), (0, 1)))))

    @cached_property
    def pairs(self) -> np.ndarray:
        """The distribution of two neighbouring tokens, `[token token]`."""
        first, moves, emits = self.model
        return emits.T @ (first[:, None] * moves) @ emits

    def frequencies(self, tokens: np.ndarray) -> np.ndarray:
        """How often each pair of neighbouring tokens occurs, `[token token]`."""
        number = (tokens[:, :-1] * self.symbols + tokens[:, 1:]).ravel()
        share = np.bincount(number, minlength=self.symbols**2) / len(number)
        return share.reshape(self.symbols, self.symbols)

    def distance(self, tokens: np.ndarray) -> float:
        return 0.5 * float(np.abs(self.frequencies(tokens) - self.pairs).sum())

    def log_p(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the log-probability of each row, in nats; -inf of one that cannot occur."""
        first, moves, emits = self.model
        state, total = np.tile(first, (len(tokens), 1)), np.zeros(len(tokens))
        with np.errstate(divide="ignore", invalid="ignore"):
            for token in tokens.T:
                state = state * emits.T[token]
                scale = state.sum(-1, keepdims=True)
                total += np.log(scale[:, 0])
                state = np.where(scale > 0, state / scale, first) @ moves
        return total

    def draw(self, rows: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        first, moves, emits = self.model
        pick = lambda p: (rng.random(len(p))[:, None] < p.cumsum(-1)).argmax(-1)
        state, tokens = pick(np.tile(first, (rows, 1))), []
        for _ in range(self.length):
            tokens.append(pick(emits[state]))
            state = pick(moves[state])
        return np.stack(tokens, axis=1)


def sample(oracle: Oracle, sampler: Sampler, rows: int, seed: int = 0) -> Samples:
    """Returns `rows` sequences drawn by `sampler` with the oracle's posterior as network."""
    vocab = Vocab(size=oracle.symbols + 1, mask_id=oracle.symbols)
    is_score = issubclass(Score, sampler.parameterizations) and not issubclass(
        Subs, sampler.parameterizations
    )
    parameterization: Parameterization = Score() if is_score else Subs()

    def denoise(inputs: NetInput, *, key: Any = None) -> DenseLogits:
        logits = oracle.denoise(inputs).logits()
        if not is_score:
            return DenseLogits(logits)
        # A score's logits have no free constant: they are log(probability * number of tokens).
        return DenseLogits(jax.nn.log_softmax(logits, axis=-1) + np.log(oracle.symbols))

    diffusion = Diffusion(
        process=Masked(schedule=LogLinear(eps=1e-4)).with_vocab(vocab),
        parameterization=parameterization.with_vocab(vocab),
        denoise=denoise,
    )
    nothing = np.zeros((rows, oracle.length), np.int32)
    samples = drawn(of_seed(seed), nothing, nothing.astype(bool), sampler, diffusion)
    return jax.device_get(samples)


def drawn(
    key: Key[Array, ""],
    tokens: Int[np.ndarray, "b l"],
    is_fixed: Bool[np.ndarray, "b l"],
    sampler: Sampler,
    diffusion: Diffusion,
) -> Samples:
    """Returns samples of any diffusion, with `tokens` where they are fixed."""
    run = jax.jit(partial(generate, sampler=sampler, diffusion=diffusion))
    return run(by_row(key, jnp.arange(len(tokens))), tokens, is_fixed)
