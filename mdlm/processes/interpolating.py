"""Processes that interpolate between a token and noise: uniform, masking, or both.

    q(z_t | x_0) = alpha_t [z_t = x_0] + n_t(z_t),  n_t(z) = token_t at a token, mask_t at the mask
    q(z_t | z_s) = kept [z_t = z_s] + n_ts(z_t),    kept = alpha_t / alpha_s, n_ts = n_t - kept n_s
    rate_t(z)    = n_t'(z) - (alpha_t' / alpha_t) n_t(z), of jumps to z from any other token

(GIDD, arXiv:2503.04482: n_t = beta_t pi_t; noise is uniform on the K tokens other than the mask.)

The reverse chain for a distribution r of the clean token, with q_t(z | r) = alpha_t r(z) + n_t(z):

    p(z_s | z_t) = q(z_t | z_s) q_s(z_s | r) / q_t(z_t | r)

This is the posterior of a known token with r plugged in, as in UDLM (arXiv:2412.10193), Duo
(arXiv:2506.10892) and GIDD. It is not the mixture sum_x q(z_s | z_t, x) r(x), but the mixture over
p(x) proportional to r(x) q(z_t | x). So a distribution that is plugged in (r) is conditioned on the
*other* noised tokens, and one that is mixed over (p) on all of them, the token's own noised value
included. Both describe the same chain. `posterior` says which of the two `log_p0` is. If all noise
is the mask, both agree with SUBS.
"""

import abc
from dataclasses import dataclass
from typing import Literal, Self, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mdlm.draws import categorical_by_position, uniforms
from mdlm.keys import streams
from mdlm.processes.base import Process
from mdlm.schedules.base import Schedule
from mdlm.types import Vocab, with_ids

Posterior = Literal["plug_in", "mixture"]
TINY = 1e-30  # below every probability that occurs, far above the underflow of float32


@dataclass(frozen=True, kw_only=True)
class Interpolating(Process):
    """A process whose noise is uniform tokens and the mask, in shares that may change over time.

    `mask_id` and `vocab_size` come from the vocabulary (`with_vocab`). A clean token is any id
    below `vocab_size` except the mask; logits beyond `vocab_size` have no mass. `posterior` says
    what `log_p0` is conditioned on (see the module's docstring): "plug_in", the other noised
    tokens; "mixture", all of them.
    """

    schedule: Schedule
    mask_id: int | None = None
    vocab_size: int | None = None
    posterior: Posterior = "plug_in"

    def __post_init__(self):
        if self.posterior not in get_args(Posterior):
            raise ValueError(f"posterior={self.posterior!r}: must be one of {get_args(Posterior)}")
        if self.schedule.per_token:
            raise ValueError(
                f"schedule={type(self.schedule).__name__}(...) has a rate for each token, but the"
                f" rate of a noised token is unknown in {type(self).__name__}; use Masked(...)"
            )

    @abc.abstractmethod
    def noise(self, t: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
        """Returns n_t: the probability of each single token, and that of the mask."""

    @abc.abstractmethod
    def renewal(
        self, s: Float[Array, "*s"], t: Float[Array, "*s"]
    ) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
        """Returns n_ts: the probability that noise between `s` and `t > s` ends in each single
        token, and that it ends in the mask."""

    @abc.abstractmethod
    def rate(self, t: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
        """Returns the rates, per unit of time, at which any other token becomes each single token,
        and the mask."""

    def with_vocab(self, vocab: Vocab) -> Self:
        if vocab.size < 3:
            raise ValueError(f"vocab_size={vocab.size}: fewer than two tokens besides the mask")
        return with_ids(self._with_schedule(self.schedule.with_vocab(vocab)), vocab)

    @property
    def tokens(self) -> int:
        """K, the number of tokens other than the mask."""
        return self._known()[1] - 1

    def is_token(self, z: Int[Array, "*s"]) -> Bool[Array, "*s"]:
        """True at ids that a clean token can have: in the vocabulary, and not the mask."""
        mask_id, size = self._known()
        return (z >= 0) & (z < size) & (z != mask_id)

    def prior(self, keys: Key[Array, " b"], length: int) -> Int[Array, "b l"]:
        token, mask = self.noise(jnp.ones(()))
        share = mask / (mask + self.tokens * token)
        return self._draw_noise(keys, jnp.full((keys.shape[0], length), share))

    def corrupt(
        self,
        keys: Key[Array, " b"],
        x_0: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        may_change: Bool[Array, "b l"] | None = None,
    ) -> Int[Array, "b l"]:
        t = jnp.broadcast_to(t, x_0.shape)
        u = uniforms(streams(keys, "whether"), x_0.shape[1])
        changes = u < self.schedule.one_minus_alpha(t)
        if may_change is not None:
            changes = changes & may_change
        token, mask = self.noise(t)
        share = mask / jnp.maximum(mask + self.tokens * token, TINY)
        return jnp.where(changes, self._draw_noise(keys, share), x_0)

    def probability(
        self, z_t: Int[Array, "*s"], x_0: Int[Array, "*s"], t: Float[Array, "*s"]
    ) -> Float[Array, "*s"]:
        """q(z_t | x_0)."""
        token, mask = self.noise(t)
        noise = jnp.where(z_t == self._known()[0], mask, token)
        return jnp.where(z_t == x_0, self.schedule.alpha(t), 0.0) + noise

    def given_others(
        self, log_p0: Float[Array, "*n v"], z_t: Int[Array, "*n"], t: Float[Array, "*n"]
    ) -> Float[Array, "*n v"]:
        """Returns log r(x_0), conditioned on the other noised tokens.

        `log_p0` is the distribution that `posterior` names, with all mass on clean tokens.
        """
        if self.posterior == "plug_in":
            return log_p0
        is_own = _columns(log_p0) == z_t[..., None]
        own = jnp.where(is_own, self.log_own(t)[..., None], 0.0)
        return jax.nn.log_softmax(log_p0 - own, axis=-1)

    def given_all(
        self, log_p0: Float[Array, "*n v"], z_t: Int[Array, "*n"], t: Float[Array, "*n"]
    ) -> Float[Array, "*n v"]:
        """Returns log p(x_0 | z_t), conditioned on all noised tokens.

        `log_p0` is the distribution that `posterior` names, with all mass on clean tokens.
        """
        if self.posterior == "mixture":
            return log_p0
        is_own = _columns(log_p0) == z_t[..., None]
        own = jnp.where(is_own, self.log_own(t)[..., None], 0.0)
        return jax.nn.log_softmax(log_p0 + own, axis=-1)

    def log_own(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """log q(z_t = x | x_0 = x) / q(z_t = x | x_0 = y), y another token than x, in nats."""
        token, _ = self.noise(t)
        return jnp.logaddexp(0.0, log(self.schedule.alpha(t)) - log(token))

    def reverse(
        self,
        keys: Key[Array, " b"],
        log_p0: Float[Array, "b l v"],
        z_t: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        s: Float[Array, " b #l"],
    ) -> Int[Array, "b l"]:
        leave, stay, others = self._jump(log_p0, z_t, t, s)
        jumps = uniforms(streams(keys, "whether"), z_t.shape[1]) * (leave + stay) < leave
        drawn = categorical_by_position(streams(keys, "which"), jnp.log(others))
        return jnp.where(jumps, drawn, z_t)

    def reverse_probabilities(
        self,
        log_p0: Float[Array, "b l v"],
        z_t: Int[Array, "b l"],
        t: Float[Array, " b #l"],
        s: Float[Array, " b #l"],
    ) -> Float[Array, "b l v"]:
        """Returns the distribution that `reverse` draws from, over the tokens and the mask."""
        leave, stay, others = self._jump(log_p0, z_t, t, s)
        share = leave / jnp.maximum((leave + stay) * others.sum(-1), TINY)
        return jnp.where(
            _columns(log_p0) == z_t[..., None],
            (stay / jnp.maximum(leave + stay, TINY))[..., None],
            share[..., None] * others,
        )

    def _jump(self, log_p0, z_t, t, s):
        """Returns the weights of leaving `z_t` and of staying, and the unnormalised distribution
        of the token jumped to."""
        t, s = jnp.broadcast_to(t, z_t.shape), jnp.broadcast_to(s, z_t.shape)
        column = _columns(log_p0)
        # A clean token is never the mask, whatever the parameterization says.
        clean = jax.nn.log_softmax(jnp.where(self.is_token(column), log_p0, -jnp.inf), axis=-1)
        r = jnp.exp(self.given_others(clean, z_t, t))
        alpha_s = self.schedule.alpha(s)
        kept = self.schedule.alpha(t) / jnp.maximum(alpha_s, TINY)
        token, mask = self.noise(s)
        noise = jnp.where(column == self._known()[0], mask[..., None], token[..., None])
        q_s = alpha_s[..., None] * r + jnp.where(column < self._known()[1], noise, 0.0)
        is_own = column == z_t[..., None]
        others = jnp.where(is_own, 0.0, q_s)
        token, mask = self.renewal(s, t)
        renewed = jnp.where(z_t == self._known()[0], mask, token)
        stay = (kept + renewed) * jnp.where(is_own, q_s, 0.0).sum(-1)
        return renewed * others.sum(-1), stay, others

    def _draw_noise(self, keys, mask_share):
        """Draws the mask with probability `mask_share`, else a uniform token."""
        mask_id, _ = self._known()
        shape = mask_share.shape[1:]
        is_mask = uniforms(streams(keys, "mask"), shape[0]) < mask_share
        rank = jax.vmap(lambda key: jax.random.randint(key, shape, 0, self.tokens))(
            streams(keys, "token")
        )
        return jnp.where(is_mask, mask_id, rank + (rank >= mask_id))

    def _known(self) -> tuple[int, int]:
        if self.mask_id is None or self.vocab_size is None:
            name = type(self).__name__
            raise ValueError(f"{name} has no mask_id or vocab_size: call with_vocab first")
        return self.mask_id, self.vocab_size


def log(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns the logarithm of max(x, `TINY`), which is finite and has a finite gradient."""
    return jnp.log(jnp.maximum(x, TINY))


def _columns(array: Float[Array, "*n v"]) -> Int[Array, "*n v"]:
    return jax.lax.broadcasted_iota(jnp.int32, array.shape, array.ndim - 1)
