"""The NELBO from pairs of rows with complementary masks.

    M masks each token with probability t, its twin masks exactly the others:
    L = E [ w(t) sum_{i in M} -log p(x_i | z) + w(1 - t) sum_{i not in M} -log p(x_i | z') ] / 2

Each of the two is an estimate of the bound, since the twin's masks are independent with probability
1 - t. Together they score each token of a row once, and a row with few masks goes with one with
many (Fast-dLLM v2, arXiv:2509.26328, and LLaDA2.0, arXiv:2512.15745, train so). A row costs two.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

from mdlm.diffusion import Diffusion
from mdlm.draws import uniforms
from mdlm.keys import by_row, stream
from mdlm.objectives.base import score_masked, uniform_of_rows
from mdlm.objectives.nelbo import Nelbo
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import ArrayTree, Batch, LossTerms


@dataclass(frozen=True, kw_only=True)
class Complementary(Nelbo):
    """Trains the NELBO with each row twice, masked complementarily; reports it as `Nelbo` does.

    Below `t_min` the two overlap a little, because times are moved there.
    """

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if not isinstance(process.schedule, LogLinear):
            name = type(process.schedule).__name__
            return f"complementary masks need 1 - alpha(t) = t, as of LogLinear(eps=0), not {name}"
        if self.importance:
            return "complementary masks need uniform times: importance=False"
        return None

    def reported(self) -> Nelbo:
        fields = ("times", "t_min", "reconstruction")
        return Nelbo(**{name: getattr(self, name) for name in fields})

    def __call__(
        self, key: Key[Array, ""], batch: Batch, diffusion: Diffusion[Masked]
    ) -> LossTerms:
        twins = replace(
            jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0) if a.ndim else a, batch),
            rows=2 * batch.rows,
        )
        with jax.named_scope("noise"):
            u = uniform_of_rows(self.times, key, batch)
            t, weight = self.times_and_weights(diffusion.process.schedule, paired(u, 1 - u))
            v = uniforms(by_row(stream(key, "corrupt"), batch.row), batch.tokens.shape[1])
            z_t = diffusion.process.mask_where(paired(v, 1 - v), twins.tokens, t, twins.is_valid)
        terms = score_masked(
            twins, diffusion, z_t=z_t, t=t, weight=weight, key=stream(key, "dropout")
        )
        return replace(
            terms,
            total=terms.total / 2,
            values=of_both(terms.values) / 2,
            bound=of_both(terms.bound) / 2,
            count=of_both(terms.count) / 2,
            scored=of_both(terms.scored),
            t=None,
            weight=None,
        )


def paired(first: Array, second: Array) -> Array:
    """Returns the rows of two arrays in turn."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def of_both(values: ArrayTree) -> Array:
    """Returns the sums over pairs of rows."""
    return values.reshape(-1, 2, *values.shape[1:]).sum(1)
