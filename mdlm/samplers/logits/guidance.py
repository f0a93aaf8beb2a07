"""Guidance: the network's distribution of a masked token, changed towards a condition.

With z the current tokens, v a token at position i, y the condition, and gamma the weight (Schiff et
al., arXiv:2412.10193; the distributions are of the clean token, as theirs are for masking):

    ClassifierFree    p(v | z, y)^gamma  p(v | z)^(1 - gamma)
    Classifier        p(v | z)  p(y | z with v at i)^gamma
        "exact"       by a call of the classifier for each v and each position asked for
        "taylor"      with log p(y | z with v at i) linear in the one-hot vectors of z: one gradient

each divided by its sum. gamma = 1 is the distribution given y (if the classifier is exact), 0 is
the distribution without y, a larger gamma exaggerates y. LLaDA writes w + 1 for gamma.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.diffusion import Diffusion, NetworkTraits
from mdlm.errors import InputError
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked
from mdlm.types import ArrayTree, DenseLogits, NetInput, Prediction

LogP = Callable[[Float[Array, "n l v"], Float[Array, " n #l"] | None], Float[Array, " n"]]
"""`log_p(one_hot, t)`: log p(y | z) of rows z, given as one-hot vectors over the vocabulary (mask
included), at the times `t` that the network is given."""

Without = Literal["label", "prompt"]
How = Literal["exact", "taylor"]


@dataclass(frozen=True, kw_only=True)
class Guidance(abc.ABC):
    """Changes the network's distributions, for every sampler alike. `weight` is gamma."""

    weight: float = 1.0

    def __post_init__(self):
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight={self.weight}: must be a finite number, at least 0")

    @property
    def calls(self) -> int:
        """The number of network calls made for each call of the sampler."""
        return 1

    @property
    def needs_labels(self) -> bool:
        """Whether the guided rows must have labels."""
        return False

    def incompatibility(
        self,
        process: Process,
        parameterization: Parameterization,
        network: NetworkTraits | None = None,
    ) -> str | None:
        """The reason why it cannot guide with these parts; None if it can. Without `network`, the
        network is not checked."""
        if isinstance(process, Masked) and isinstance(parameterization, Subs):
            return None
        return (
            f"guidance={type(self).__name__}(...) changes the distribution of a masked token: it"
            " needs process=Masked(...) and parameterization=Subs(...), not"
            f" {type(process).__name__}(...) and {type(parameterization).__name__}(...)"
        )

    @abc.abstractmethod
    def wrap(self, diffusion: Diffusion, is_fixed: Bool[Array, "b l"]) -> Diffusion:
        """The diffusion with a guided network, for rows whose tokens at `is_fixed` are given."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(Guidance):
    """Guidance by the network itself, called with the condition and `without` it.

    The condition is the rows' labels, or the prompt, i.e. all fixed tokens (LLaDA,
    arXiv:2502.09992). Each call becomes two network calls; one if the weight is 0 or 1, where only
    one of them counts.
    """

    without: Without

    def __post_init__(self):
        super().__post_init__()
        if self.without not in get_args(Without):
            raise ValueError(f'without={self.without!r}: must be "label" or "prompt"')

    @property
    def calls(self) -> int:
        return 1 if self.weight in (0, 1) else 2

    @property
    def needs_labels(self) -> bool:
        return self.without == "label"

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None or network is None:
            return reason
        title = f'guidance=ClassifierFree(without="{self.without}")'
        if self.without == "label" and not network.takes_labels:
            return f"{title} needs a network that takes labels, e.g. network=DiT(labels=...)"
        if self.without == "prompt" and network.attends == "causal":
            return (
                f"{title} puts masks in place of the prompt: it needs a network that reads masks,"
                " and a causal one does not"
            )
        return None

    def wrap(self, diffusion: Diffusion, is_fixed: Bool[Array, "b l"]) -> Diffusion:
        denoise = diffusion.denoise
        mask_id, _ = diffusion.parameterization.ids()

        def withheld(inputs: NetInput) -> NetInput:
            if self.without == "prompt":
                hidden = lambda tokens: jnp.where(is_fixed, mask_id, tokens)
                clean = None if inputs.clean is None else hidden(inputs.clean)
                return replace(inputs, tokens=hidden(inputs.tokens), clean=clean)
            if inputs.label is None:
                raise InputError(
                    'ClassifierFree(without="label"): the rows have no label; give each row a label'
                )
            return replace(inputs, label=None)

        def guided(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            without = withheld(inputs)
            if self.calls == 2 and inputs.reading is not None and inputs.reading.stored is not None:
                # Each of the two calls has stored its own keys and values.
                both = zip((inputs, without), inputs.reading.stored, strict=True)
                inputs, without = (
                    replace(one, reading=replace(one.reading, stored=stored))
                    for one, stored in both
                )
            if self.weight == 1:
                return denoise(inputs, key=key)
            if self.weight == 0:
                return denoise(without, key=key)
            return Mixed(denoise(inputs, key=key), denoise(without, key=key), self.weight)

        return replace(diffusion, denoise=guided)


@dataclass(frozen=True, kw_only=True)
class Classifier(Guidance):
    """Guidance by a classifier of noised rows, the function `log_p` (see `LogP`).

    Calls of the classifier are not counted in NFE. "exact" calls it for each token of the
    vocabulary at each position asked for (in `Reverse`, every position), on `batch` rows of one-hot
    vectors at a time; "taylor" calls it once, with its gradient, for each network call.
    """

    log_p: LogP
    how: How = "exact"
    batch: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.how not in get_args(How):
            raise ValueError(f'how={self.how!r}: must be "exact" or "taylor"')
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}: must be at least 1")

    def wrap(self, diffusion: Diffusion, is_fixed: Bool[Array, "b l"]) -> Diffusion:
        denoise = diffusion.denoise
        mask_id, size = diffusion.parameterization.ids()
        tilt = self._exact if self.how == "exact" else self._taylor

        def guided(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            prediction = denoise(inputs, key=key)
            if self.weight == 0:
                return prediction
            asked = tilt(inputs.tokens, inputs.t, size)
            return Tilted(prediction, asked, self.weight, mask_id)

        return replace(diffusion, denoise=guided)

    def _exact(self, tokens: Int[Array, "b l"], t: Float[Array, " b #l"] | None, size: int):
        """log p(y | z with v at i) at the positions asked for."""
        l = tokens.shape[1]

        def tilt(at: Int[Array, " n"]) -> Float[Array, "n v"]:
            pairs = at.shape[0] * size
            batch = min(self.batch, pairs)

            def ask(start: Int[Array, ""]) -> Float[Array, " n"]:
                pair = jnp.minimum(start + jnp.arange(batch), pairs - 1)
                row, token = at[pair // size], pair % size
                changed = tokens[row // l].at[jnp.arange(batch), row % l].set(token)
                return self._log_p(changed, None if t is None else t[row // l], size)

            asked = jax.lax.map(ask, jnp.arange(0, pairs, batch))
            return asked.reshape(-1)[:pairs].reshape(-1, size)

        return tilt

    def _taylor(self, tokens: Int[Array, "b l"], t: Float[Array, " b #l"] | None, size: int):
        """The same up to a constant for each position, with log p linear in the one-hot vectors."""
        one_hot = jax.nn.one_hot(tokens, size)
        slope = jax.grad(lambda x: self.log_p(x, t).sum())(one_hot).reshape(-1, size)
        return lambda at: slope[at]

    def _log_p(self, tokens, t, size: int):
        return self.log_p(jax.nn.one_hot(tokens, size), t).astype(jnp.float32)


class _Guided(Prediction):
    """A prediction computed from other predictions, for sampling."""

    def reduce_rows(
        self,
        fn: Callable[[Float[Array, "n v"], ArrayTree, ArrayTree], Float[Array, " n"]],
        rows: ArrayTree,
        weight: Float[Array, "b l"],
        shared: ArrayTree = None,
    ) -> tuple[Float[Array, ""], Float[Array, "b l"]]:
        return DenseLogits(self.logits()).reduce_rows(fn, rows, weight, shared)


class Mixed(_Guided):
    """gamma times the logits of one prediction plus 1 - gamma times those of another.

    A token to which either gives probability 0 gets probability 0.
    """

    def __init__(self, prediction: Prediction, other: Prediction, weight: float):
        self.prediction, self.other, self.weight = prediction, other, weight
        if prediction.cache is not None:
            self.cache = (prediction.cache, other.cache)

    @property
    def whole(self) -> Prediction:
        return Mixed(self.prediction.whole, self.other.whole, self.weight)

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        # Constants of a position, such as its normaliser, cancel in the softmax of the result.
        one, other = self.prediction.logits(at), self.other.logits(at)
        has_mass = jnp.isfinite(one) & jnp.isfinite(other)
        one, other = (jnp.where(has_mass, logits, 0.0) for logits in (one, other))
        return jnp.where(has_mass, other + self.weight * (one - other), -jnp.inf)


class Tilted(_Guided):
    """A prediction with gamma times `tilt(at)`, `[n v]` over the vocabulary, added to its logits.

    Positions at which the tilt leaves no token but the mask any probability stay unchanged.
    """

    def __init__(
        self,
        prediction: Prediction,
        tilt: Callable[[Int[Array, " n"]], Float[Array, "n v"]],
        weight: float,
        mask_id: int,
    ):
        self.prediction, self.tilt, self.weight = prediction, tilt, weight
        self.mask_id, self.cache = mask_id, prediction.cache

    @property
    def whole(self) -> Prediction:
        return Tilted(self.prediction.whole, self.tilt, self.weight, self.mask_id)

    def logits(self, at: Int[Array, " n"] | None = None) -> Float[Array, "..."]:
        logits = self.prediction.logits(at)
        flat = logits.reshape(-1, logits.shape[-1])
        tilt = self.weight * self.tilt(jnp.arange(flat.shape[0]) if at is None else at)
        size = tilt.shape[1]
        tilted = flat[:, :size] + tilt
        is_token = (jnp.arange(size) != self.mask_id)[None]
        has_mass = (jnp.isfinite(tilted) & is_token).any(-1, keepdims=True)
        guided = flat.at[:, :size].set(jnp.where(has_mass, tilted, flat[:, :size]))
        return guided.reshape(logits.shape)
