"""The mean parameterization: the output is the law of x_0, and nothing is put in by hand.

    log p(x_0 | z_t) = log softmax(output),  over the vocabulary

(The "x_0-parameterization" of D3PM, arXiv:2107.03006 app. A.8.) Unlike SUBS it does not carry clean
tokens over, and the mask may have mass, though no clean token is a mask: for absorbing noise the
objective `D3PM` charges for that mass. Columns beyond the vocabulary have none; no mass is -inf
exactly, and gradients there are 0.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.parameterizations.base import Parameterization
from mdlm.types import Vocab


@dataclass(frozen=True, kw_only=True)
class Mean(Parameterization):
    """The output is logits of the clean token at every position, noised or not.

    `mask_has_mass` lets the mask's column take part in the softmax, as in D3PM; False suppresses
    it. Both other fields come from the vocabulary.
    """

    mask_has_mass: bool = False
    mask_id: int | None = None
    vocab_size: int | None = None

    def with_vocab(self, vocab: Vocab) -> "Mean":
        for name, mine, theirs in (
            ("mask_id", self.mask_id, vocab.mask_id),
            ("vocab_size", self.vocab_size, vocab.size),
        ):
            if mine not in (None, theirs):
                raise ValueError(f"{name}={mine}, but the vocabulary's is {theirs}")
        return dataclasses.replace(self, mask_id=vocab.mask_id, vocab_size=vocab.size)

    def log_p0(
        self,
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, "*#n"] | None = None,
    ) -> Float[Array, "*n v"]:
        return jax.nn.log_softmax(self._in_support(output)[0], axis=-1)

    def log_p0_of(
        self,
        x_0: Int[Array, "*n"],
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, "*#n"] | None = None,
    ) -> Float[Array, "*n"]:
        logits, column = self._in_support(output)
        picked = jnp.where(column == x_0[..., None], logits, 0.0).sum(-1)
        return picked - jax.nn.logsumexp(logits, axis=-1)

    def _in_support(self, output):
        """Float32 logits with no mass outside the support, and each entry's column."""
        if self.mask_id is None or self.vocab_size is None:
            raise ValueError("Mean has no mask_id or vocab_size: call with_vocab first")
        column = jax.lax.broadcasted_iota(jnp.int32, output.shape, output.ndim - 1)
        has_mass = column < self.vocab_size
        if not self.mask_has_mass:
            has_mass &= column != self.mask_id
        # float32 before the softmax: log-probabilities are not made in bfloat16.
        return jnp.where(has_mass, output.astype(jnp.float32), -jnp.inf), column
