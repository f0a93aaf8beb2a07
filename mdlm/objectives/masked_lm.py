"""Masked language modelling at one ratio, BERT's objective (arXiv:1810.04805, sec. 3.1).

    K = max(1, round(ratio n)) of a row's n scored tokens chosen, all sets alike; each becomes
    the mask, or with probability `random` a uniform token, or with probability `keep` stays:
    L = (n / K) sum_{i chosen} -log p(x_i | z)

so a row gives the mean cross-entropy over its chosen tokens, once for each scored token. No bound
on the likelihood: it asks at one noise level only. `Perplexity(objective=Nelbo())` has the bound
of a network trained like this, which has to answer at all of them.

BERT replaces (random=0.1, keep=0.1), so that the network also reads tokens it cannot trust. Those
are scored like masked ones, by the network's law and not by what SUBS would carry over.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int, Key

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.keys import by_row, stream, streams
from mdlm.objectives.base import Objective, ask, scored_tokens, weighted_cross_entropy
from mdlm.objectives.masked_count import choose, refuse_without_inverse, time_of_share
from mdlm.processes.masked import Masked
from mdlm.types import Batch, LossTerms, Vocab, with_ids


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """Trains cross-entropy at one ratio of masked tokens, in nats, and reports the same.

    Args:
        ratio: share of a row's scored tokens that are chosen; at least one token is.
        random: share of the chosen that becomes a uniform token other than the mask (it may be
            the same token) instead of the mask.
        keep: share of the chosen that stays as it is.
        vocab_size: comes from the vocabulary.
    """

    ratio: float = 0.15
    random: float = 0.0
    keep: float = 0.0
    vocab_size: int | None = None
    protocol: ClassVar[str] = "masked-LM cross-entropy at one ratio, NO bound on the likelihood"

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio} is not in (0, 1]")
        if self.random < 0 or self.keep < 0 or self.random + self.keep > 1:
            raise ValueError(f"random={self.random} and keep={self.keep} are no shares of a whole")

    def with_vocab(self, vocab: Vocab) -> Self:
        return with_ids(self, vocab)

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        return reason or refuse_without_inverse(process.schedule)

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        process = diffusion.process
        with jax.named_scope("noise"):
            may_change = scored_tokens(batch)
            n = may_change.sum(-1, keepdims=True)
            count = jnp.round(self.ratio * n).astype(n.dtype)
            count = jnp.minimum(jnp.maximum(count, 1), n)
            keys = by_row(stream(key, "corrupt"), batch.row)
            is_chosen = choose(keys, may_change, count)
            masks = process.prior(keys, is_chosen.shape[1])
            seen = self.replaced(stream(key, "replace"), batch, masks)
            seen = jnp.where(is_chosen, seen, batch.tokens)
            t = time_of_share(process.schedule, count, n)
        return weighted_cross_entropy(
            ask(diffusion.denoise, batch, tokens=seen, t=t, key=stream(key, "dropout")),
            batch,
            parameterization=diffusion.parameterization,
            z_t=jnp.where(is_chosen, masks, batch.tokens),
            t=t,
            weight=jnp.where(is_chosen, n / jnp.maximum(count, 1), 0.0),
        )

    def replaced(
        self, key: Key[Array, ""], batch: Batch, masks: Int[Array, "b l"]
    ) -> Int[Array, "b l"]:
        """What the network sees in place of each token, if it is chosen."""
        if self.random == self.keep == 0:
            return masks
        if self.vocab_size is None:
            raise ValueError("MaskedLM has no vocab_size: call with_vocab first")
        keys, shape, ids = by_row(key, batch.row), masks.shape[1:], self.vocab_size - 1
        u = uniforms(streams(keys, "whether"), shape[0])
        which = streams(keys, "which")
        other = jax.vmap(lambda key: jax.random.randint(key, shape, 0, ids))(which)
        # One id fewer is drawn; those from the mask's on stand for the next.
        other = other + (other >= masks)
        seen = jnp.where(u < self.random + self.keep, batch.tokens, masks)
        return jnp.where(u < self.random, other, seen)
