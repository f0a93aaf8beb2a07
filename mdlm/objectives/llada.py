"""LLaDA (arXiv:2502.09992): the masked NELBO of a response, given its prompt.

    t uniform on (0, 1] for each row, each counted token masked independently with probability t:
    L = E (1 / t) sum_{i masked} -log p(x_i | prompt, z_t)

With alpha = 1 - t this is `Nelbo`, with one difference: noise reaches only the tokens of the loss
mask. Valid tokens outside it (the prompt of a fine-tuning set) stay clean, in training and
evaluation, and L bounds -log p(response | prompt). If all tokens count, as in pre-training, it
equals `Nelbo`. Other schedules measure time differently, and L stays the same.

Near t = 0 the weight 1 / t grows without limit. The public code draws t' = (1 - eps) t + eps: the
integral then ends at eps, and the part below is dropped (`reconstruction=False`, with t_min = eps
= 1e-3). The default here has that part in one term (see `nelbo`), so the bound is complete.
As published: LLaDA(times=IID(), reconstruction=False), process=Masked(schedule=LogLinear(eps=0.0)).

Its likelihood estimate masks an exact count of tokens instead, which has less variance:
`Perplexity(objective=OrderAgnostic())`, see `masked_count`.
"""

from dataclasses import dataclass
from typing import ClassVar

from jax import Array
from jaxtyping import Bool

from mdlm.objectives.base import scored_tokens
from mdlm.objectives.nelbo import Nelbo
from mdlm.types import Batch


@dataclass(frozen=True, kw_only=True)
class LLaDA(Nelbo):
    """Trains and reports the NELBO of the tokens in the loss mask, given the others, in nats."""

    given: ClassVar[str] = ", given the unscored tokens"

    def may_change(self, batch: Batch) -> Bool[Array, "b l"]:
        return scored_tokens(batch)
