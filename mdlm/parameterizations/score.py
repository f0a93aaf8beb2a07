"""The score of SEDD (arXiv:2310.16834): the probability ratio of the row with another token.

    s(z)_y = p_t(z with y at this position) / p_t(z),   s(z)_z = 1

p_t is the distribution of noised rows; the output is log s. With absorbing noise the score of a
token y at a mask is p(x_0 = y | z_t) / expm1(sigma), sigma = -log alpha. That factor and the number
of tokens are divided out, so that the network need not learn them:

    log s = output - log expm1(sigma) - log(V - 1)

so an output of zeros is the uniform distribution at every time. With uniform noise the output is
log s itself: zeros are exact at t = 1.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.masked import Masked

Graph = Literal["absorbing", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Score(Parameterization):
    """The output is a log-score. `graph` is the kind of noise.

    `log_p0` exists for absorbing noise only: there the distribution of a masked token is
    proportional to the score, and all other tokens are known. It equals SUBS of the same output.
    """

    graph: Graph = "absorbing"

    def __post_init__(self):
        if self.graph not in get_args(Graph):
            raise ValueError(f"graph={self.graph!r}: must be one of {get_args(Graph)}")

    def log_score(
        self, output: Float[Array, "*n v"], z_t: Int[Array, "*n"], sigma: Float[Array, " *#n"]
    ) -> Float[Array, "*n v"]:
        """Returns log s of every token at every position, nats, float32: 0 at the present token.

        It is -inf beyond `vocab_size` and, with uniform noise, at the mask, which that noise never
        produces. `sigma` is the total noise, finite and above 0.
        """
        absorbing = self.graph == "absorbing"
        log_score, column = self.over_vocabulary(output, with_mask=absorbing)
        if absorbing:
            scale = log_expm1(sigma) + math.log(self.ids()[1] - 1)
            log_score = log_score - scale[..., None]
        return jnp.where(column == z_t[..., None], 0.0, log_score)

    def log_p0(
        self,
        output: Float[Array, "*n v"],
        z_t: Int[Array, "*n"],
        t: Float[Array, " *#n"] | None = None,
    ) -> Float[Array, "*n v"]:
        mask_id, size = self.ids()
        if self.graph != "absorbing":
            raise ValueError(f"graph={self.graph!r}: log_p0 needs graph='absorbing'")
        return Subs(mask_id=mask_id, vocab_size=size).log_p0(output, z_t, t)

    def incompatibility(self, process: Process) -> str | None:
        graph = "absorbing" if isinstance(process, Masked) else "uniform"
        name = type(process.schedule).__name__
        if self.graph != graph:
            return (
                f"process={type(process).__name__}(...) needs parameterization="
                f'Score(graph="{graph}"), not Score(graph="{self.graph}")'
            )
        if process.schedule.per_token:
            return f"a score needs one noise level for all tokens; {name} has one for each"
        if process.schedule.alpha(jnp.ones(())) == 0:
            return f"a score needs finite noise at t = 1; {name} has alpha = 0 there: set eps > 0"
        return None


def log_expm1(sigma: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns `log(exp(sigma) - 1)`, without overflow or cancellation."""
    return sigma + jnp.log(-jnp.expm1(-sigma))
