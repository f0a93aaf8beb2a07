"""Schedules that noise tokens at different rates: alpha(t, x_0), one curve for each token.

    GenMD4          alpha_k = 1 - (1 - eps) t^p_k,  p_k = softplus(w_k) learned with the network
                    (arXiv:2406.04329, section on generalized masking)
    DiffusionBERT   alpha_k = 1 - t - lambda sin(pi t) H~_k,  H~_k = 1 - mean H / H_k,
                    H_k = -log p(k)     (arXiv:2211.15029, "spindle", in continuous time)

The time at which a token is masked then carries information about the token. So the distribution
of a masked token depends on t as well as on the other tokens, and a weighted cross-entropy alone is
not a bound: `objectives/generalized.py` has the missing term.
"""

import abc
import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.schedules.base import Schedule, check_eps
from mdlm.schedules.md4 import relative_gap
from mdlm.types import ArrayTree, Vocab, with_ids


class PerToken(Schedule):
    """A family of schedules, one for each token of the vocabulary.

    It is a pytree of its arrays, so that functions of it can be differentiated in learned values.
    """

    per_token: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    """True if the arrays are trained: noise is then drawn from a distribution that is learned."""

    @abc.abstractmethod
    def of(self, x_0: Int[Array, "*s"]) -> Schedule:
        """Returns the schedules of the tokens `x_0` as one schedule of times of that shape.

        Raises ValueError if the arrays are not set.
        """

    @abc.abstractmethod
    def of_all(self) -> Schedule:
        """Returns the schedules of all tokens as one schedule of times `[n v]`."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of tokens, vocab_size."""

    def figures(self) -> dict[str, Float[Array, ""]]:
        """Returns statistics of the arrays for the training log."""
        return {}

    def alpha(self, t, x_0=None):
        return self._at(x_0).alpha(t)

    def one_minus_alpha(self, t, x_0=None):
        return self._at(x_0).one_minus_alpha(t)

    def alpha_gap(self, s, t, x_0=None):
        return self._at(x_0).alpha_gap(s, t)

    def dalpha(self, t, x_0=None):
        return self._at(x_0).dalpha(t)

    def weight(self, t, x_0=None):
        return self._at(x_0).weight(t)

    def log_snr(self, t, x_0=None):
        return self._at(x_0).log_snr(t)

    def sigma(self, t, x_0=None):
        return self._at(x_0).sigma(t)

    def _at(self, x_0: Int[Array, "*s"] | None) -> Schedule:
        if x_0 is None:
            raise ValueError(f"{type(self).__name__} has a rate for each token: x_0 is needed")
        return self.of(x_0)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["w"],
    meta_fields=["power", "eps", "vocab_size"],
)
@dataclass(frozen=True, kw_only=True)
class LearnedPolynomial(PerToken):
    """GenMD4's schedule: polynomials whose powers are learned, one for each token.

    A token with a large power is masked late. `power` is the initial power of all tokens; `eps`
    is alpha at t = 1. `vocab_size` comes from the vocabulary, `w` from the parameters.
    """

    power: float = 1.0
    eps: float = 1e-4
    vocab_size: int | None = None
    w: Any = field(default=None, repr=False)  # Float[Array, " v"]
    learns: ClassVar[bool] = True

    def __post_init__(self):
        check_eps(self.eps, 1.0)
        if not 0 < self.power < math.inf:
            raise ValueError(f"power={self.power}: must be finite and above 0")

    def with_vocab(self, vocab: Vocab) -> Self:
        return with_ids(self, vocab)

    def init(self, key: Key[Array, ""]) -> ArrayTree:
        if self.vocab_size is None:
            raise ValueError("LearnedPolynomial has no vocab_size: call with_vocab first")
        # The inverse of softplus.
        start = self.power + math.log(-math.expm1(-self.power))
        return {"w": jnp.full((self.vocab_size,), start, jnp.float32)}

    def bind(self, arrays: ArrayTree) -> Self:
        return replace(self, w=arrays["w"])

    @property
    def powers(self) -> Float[Array, " v"]:
        """The power of each token. Raises ValueError if they are not bound."""
        if self.w is None:
            raise ValueError("LearnedPolynomial has no powers: call bind first")
        return jax.nn.softplus(self.w)

    def of(self, x_0: Int[Array, "*s"]) -> Schedule:
        return _Power(power=self.powers[x_0], eps=self.eps)

    def of_all(self) -> Schedule:
        return _Power(power=self.powers[None], eps=self.eps)

    @property
    def size(self) -> int:
        return len(self.powers)

    def figures(self) -> dict[str, Float[Array, ""]]:
        powers = self.powers
        return {"power_min": powers.min(), "power_max": powers.max(), "power_mean": powers.mean()}


@dataclass(frozen=True, kw_only=True)
class _Power(Schedule):
    """1 - (1 - eps) t^power, with a power for each time."""

    power: Float[Array, "..."]
    eps: float

    def alpha(self, t, x_0=None):
        return self.eps - (1 - self.eps) * jnp.expm1(self.power * jnp.log(t))

    def one_minus_alpha(self, t, x_0=None):
        return (1 - self.eps) * t**self.power

    def alpha_gap(self, s, t, x_0=None):
        return -self.one_minus_alpha(t) * relative_gap(s, t, self.power)

    def dalpha(self, t, x_0=None):
        return -(1 - self.eps) * self.power * t ** (self.power - 1)

    def weight(self, t, x_0=None):
        return self.power / t

    def log_snr(self, t, x_0=None):
        return jnp.log(self.alpha(t)) - (math.log1p(-self.eps) + self.power * jnp.log(t))


STEEPEST = 0.95
"""Bound of pi |lambda H~|, so that -alpha' stays between 1 - STEEPEST and 1 + STEEPEST."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["bend"], meta_fields=["strength"])
@dataclass(frozen=True, kw_only=True)
class Spindle(PerToken):
    """DiffusionBERT's schedule: rare, informative tokens are masked first, frequent ones last.

    `strength` is the paper's lambda; 0 is alpha = 1 - t for all. `bend` is made of the counts.
    H_k is the information of token k in the training split, in nats, with 1 added to each count so
    that it is finite for unseen tokens. The paper's mean of H is over the tokens of the same
    sentence. A sentence's other tokens are not a function of (t, x_0), and in generation they are
    not known, so here the mean is over the training split: the entropy of its unigram distribution.

    H~ has no lower bound: alpha of the most frequent tokens would rise above 1 and fall again.
    The paper's code clips alpha (and uses log(1 + count) / its maximum, minus the sentence's
    mean, for -H~), which leaves the derivative, and so the bound, that of another schedule.
    Here lambda H~ itself is clipped to +-STEEPEST / pi. H~ < 1, so for rare tokens the limit on
    `strength` is enough. Then alpha falls from 1 to 0 for each token and needs no clipping.

    The paper starts from a pretrained masked language model: `mdlm train --init-from RUN` loads
    the network of any run with the same network, whatever its objective.
    """

    strength: float = 0.3
    bend: Any = field(default=None, repr=False)  # Float[Array, " v"], lambda H~
    needs_counts: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.strength <= STEEPEST / math.pi:
            raise ValueError(
                f"strength={self.strength}: must be in [0, {STEEPEST / math.pi:.3f}], so that"
                " alpha falls at all times"
            )

    def with_counts(self, counts: Int[np.ndarray, " v"]) -> Self:
        if counts.min() < 0 or counts.sum() == 0:
            raise ValueError("counts: no token counts, as one is negative or all are 0")
        p = (counts + 1.0) / (counts + 1.0).sum()
        information = -np.log(p)
        bend = self.strength * (1 - (p * information).sum() / information)
        bend = np.maximum(bend, -STEEPEST / math.pi)
        return replace(self, bend=jnp.asarray(bend, jnp.float32))

    def of(self, x_0: Int[Array, "*s"]) -> Schedule:
        return _Bend(bend=self._known[x_0])

    def of_all(self) -> Schedule:
        return _Bend(bend=self._known[None])

    @property
    def size(self) -> int:
        return len(self._known)

    @property
    def _known(self) -> Float[Array, " v"]:
        if self.bend is None:
            raise ValueError("Spindle has no token counts: call with_counts first")
        return self.bend


@dataclass(frozen=True, kw_only=True)
class _Bend(Schedule):
    """1 - t - bend sin(pi t), with a bend for each time."""

    bend: Float[Array, "..."]

    def alpha(self, t, x_0=None):
        return (1 - t) - self.bend * self._sine(t)

    def one_minus_alpha(self, t, x_0=None):
        return t + self.bend * self._sine(t)

    def alpha_gap(self, s, t, x_0=None):
        middle = jnp.sin(math.pi / 2 * ((1 - t) - s))  # the cosine of pi (t + s) / 2
        return (t - s) + 2 * self.bend * middle * jnp.sin(math.pi / 2 * (t - s))

    def dalpha(self, t, x_0=None):
        return -1 - math.pi * self.bend * jnp.cos(math.pi * t)

    def _sine(self, t):
        # sin(pi t) is the same at t and at 1 - t; the smaller argument keeps its digits.
        return jnp.sin(math.pi * jnp.minimum(t, 1 - t))
