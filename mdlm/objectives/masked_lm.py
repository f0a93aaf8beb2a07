"""Masked language modelling at one ratio, BERT's objective (arXiv:1810.04805, sec. 3.1).

    K = max(1, round(ratio n)) of a row's n counted tokens chosen uniformly; each becomes
    the mask, or with probability `random` a uniform token, or with probability `keep` stays:
    L = (n / K) sum_{i chosen} -log p(x_i | z)

so a row adds n times the mean cross-entropy of its chosen tokens. It is no bound on the
likelihood, since it has one noise level only. `Perplexity(objective=Nelbo())` evaluates the bound
of a network trained like this, which then predicts at all noise levels.

BERT replaces tokens (random=0.1, keep=0.1), so that the network also reads tokens that may be
wrong. Their loss is that of masked tokens: it uses the network's distribution, not the token that
SUBS carries over.
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
        ratio: share of a row's counted tokens that are chosen; at least one token is.
        random: share of the chosen that becomes a uniform token other than the mask (perhaps
            the same token) instead of the mask.
        keep: share of the chosen that stays unchanged.
        vocab_size: comes from the vocabulary.
    """

    ratio: float = 0.15
    random: float = 0.0
    keep: float = 0.0
    vocab_size: int | None = None
    protocol: ClassVar[str] = "masked-LM cross-entropy at one ratio, NO bound on the likelihood"

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio}: must be in (0, 1]")
        if self.random < 0 or self.keep < 0 or self.random + self.keep > 1:
            raise ValueError(
                f"random={self.random} and keep={self.keep}: each at least 0, their sum at most 1"
            )

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
            inputs = self.replaced(stream(key, "replace"), batch, masks)
            inputs = jnp.where(is_chosen, inputs, batch.tokens)
            t = time_of_share(process.schedule, count, n)
        return weighted_cross_entropy(
            ask(diffusion.denoise, batch, tokens=inputs, t=t, key=stream(key, "dropout")),
            batch,
            parameterization=diffusion.parameterization,
            z_t=jnp.where(is_chosen, masks, batch.tokens),
            t=t,
            weight=jnp.where(is_chosen, n / jnp.maximum(count, 1), 0.0),
        )

    def replaced(
        self, key: Key[Array, ""], batch: Batch, masks: Int[Array, "b l"]
    ) -> Int[Array, "b l"]:
        """Returns the token that the network reads instead of each token, if it is chosen."""
        if self.random == self.keep == 0:
            return masks
        if self.vocab_size is None:
            raise ValueError("MaskedLM has no vocab_size: call with_vocab first")
        keys, shape, ids = by_row(key, batch.row), masks.shape[1:], self.vocab_size - 1
        u = uniforms(streams(keys, "whether"), shape[0])
        which = streams(keys, "which")
        other = jax.vmap(lambda key: jax.random.randint(key, shape, 0, ids))(which)
        # Ids are drawn without the mask's: those from it on are shifted up by one.
        other = other + (other >= masks)
        inputs = jnp.where(u < self.random + self.keep, batch.tokens, masks)
        return jnp.where(u < self.random, other, inputs)
