"""The absorbing process: a token stays clean with probability alpha(t), else it is the mask.

    q(z_t = x_0) = alpha(t),  q(z_t = mask) = 1 - alpha(t)    (MDLM, arXiv:2406.07524)
    masked at t, at s < t: revealed with probability (alpha(s) - alpha(t)) / (1 - alpha(t)),
    then drawn from p(x_0); otherwise still masked. Not masked at t: the same token (MDLM eq. 7)

Whether a token is revealed and which token it becomes are two draws. One joint draw over the
tokens and the mask has the same distribution, but multiplies the probabilities of the tokens by the
small one of revealing, and rare tokens then fall below the resolution of float32
(arXiv:2409.02908).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.draws import categorical_by_position, uniforms
from mdlm.keys import streams
from mdlm.processes.base import Process
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import Vocab, with_ids


@dataclass(frozen=True, kw_only=True)
class Masked(Process):
    """Absorbing noise. `mask_id` comes from the vocabulary (`with_vocab`)."""

    schedule: Schedule = LogLinear()
    mask_id: int | None = None

    def with_vocab(self, vocab: Vocab) -> "Masked":
        return with_ids(self._with_schedule(self.schedule.with_vocab(vocab)), vocab)

    def is_masked(self, z_t: Int[Array, "*s"]) -> Bool[Array, "*s"]:
        """True where the token is the mask."""
        return z_t == self._known_mask_id()

    def is_noise(self, z_t: Int[Array, "*s"]) -> Bool[Array, "*s"]:
        return self.is_masked(z_t)

    def prior(self, keys: Key[Array, " b"], length: int) -> Int[Array, "b l"]:
        return jnp.full((keys.shape[0], length), self._known_mask_id(), jnp.int32)

    def corrupt(
        self,
        keys: Key[Array, " b"],
        x_0: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        may_change: Bool[Array, "b l"] | None = None,
    ) -> Int[Array, "b l"]:
        return self.mask_where(uniforms(keys, x_0.shape[1]), x_0, t, may_change)

    def mask_where(
        self,
        u: Float[Array, "b l"],
        x_0: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        may_change: Bool[Array, "b l"] | None = None,
    ) -> Int[Array, "b l"]:
        """`corrupt` with given uniform numbers: the mask where `u < 1 - alpha(t)`, strictly."""
        noised = self.schedule.one_minus_alpha(jnp.broadcast_to(t, x_0.shape), x_0)
        changes = u < noised
        if may_change is not None:
            changes = changes & may_change
        return jnp.where(changes, self._known_mask_id(), x_0)

    def reveal_probability(
        self,
        t: Float[Array, "*s"],
        s: Float[Array, "*s"],
        x_0: Int[Array, "*s"] | None = None,
    ) -> Float[Array, "*s"]:
        """Probability that a token masked at `t` is not masked at `s <= t`, given that it is `x_0`.

        Exactly 1 where alpha(s) = 1 (also at s = t = 0, where no token is masked), else 0 at s = t.
        Only schedules that noise tokens at different rates (`per_token`) need `x_0`.
        """
        is_clean = self.schedule.one_minus_alpha(s, x_0) == 0
        noised = jnp.where(is_clean, 1.0, self.schedule.one_minus_alpha(t, x_0))
        reveal = jnp.minimum(self.schedule.alpha_gap(s, t, x_0) / noised, 1.0)
        return jnp.where(is_clean, 1.0, reveal)

    def reverse(
        self,
        keys: Key[Array, " b"],
        log_p0: Float[Array, "b l v"],
        z_t: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        s: Float[Array, " b #l"],
    ) -> Int[Array, "b l"]:
        u = uniforms(streams(keys, "whether"), z_t.shape[1])
        tokens = categorical_by_position(streams(keys, "which"), self._without_mask(log_p0))
        # The token is drawn first, because the probability of revealing may depend on it.
        t, s = jnp.broadcast_to(t, z_t.shape), jnp.broadcast_to(s, z_t.shape)
        is_revealed = self.is_masked(z_t) & (u < self.reveal_probability(t, s, tokens))
        return jnp.where(is_revealed, tokens, z_t)

    def reverse_probabilities(
        self,
        log_p0: Float[Array, "b l v"],
        z_t: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        s: Float[Array, " b #l"],
    ) -> Float[Array, "b l v"]:
        """Returns the distribution that `reverse` draws from, over the tokens and the mask."""
        v = log_p0.shape[-1]
        t, s, token = jnp.broadcast_arrays(t[..., None], s[..., None], jnp.arange(v)[None, None])
        reveal = self.reveal_probability(t, s, token)
        p_0 = jax.nn.softmax(self._without_mask(log_p0), axis=-1)
        stays = (p_0 * (1 - reveal)).sum(-1, keepdims=True)
        step = jnp.where(token == self._known_mask_id(), stays, reveal * p_0)
        stay = jax.nn.one_hot(z_t, v)
        return jnp.where(self.is_masked(z_t)[..., None], step, stay)

    def _without_mask(self, log_p0: Float[Array, "b l v"]) -> Float[Array, "b l v"]:
        """Removes any mass on the mask, because a clean token is never the mask."""
        is_mask = jnp.arange(log_p0.shape[-1]) == self._known_mask_id()
        return jnp.where(is_mask[None, None], -jnp.inf, log_p0)

    def _known_mask_id(self) -> int:
        if self.mask_id is None:
            raise ValueError("Masked has no mask_id: call with_vocab first")
        return self.mask_id
