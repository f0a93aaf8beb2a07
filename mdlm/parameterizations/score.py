"""The score of SEDD (arXiv:2310.16834): how likelier the row would be with another token here.

    s(z)_y = p_t(z with y in this place) / p_t(z),   s(z)_z = 1

p_t is the law of noised rows; the output holds log s. With absorbing noise the score of a token y
at a mask is p(x_0 = y | z_t) / expm1(sigma), sigma = -log alpha: that factor, and the number of
tokens, are taken out of what the network has to learn,

    log s = output - log expm1(sigma) - log(V - 1)

so an output of zeros says "all tokens alike" at every time. With uniform noise the output is log s
as it is: zeros are right at t = 1.
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
    """The output is a log-score. `graph` says which noise it is the score of.

    `log_p0` exists for absorbing noise alone, where what a mask hides has a law proportional to
    the score and everything else is known: there it equals SUBS of the same output.
    """

    graph: Graph = "absorbing"

    def __post_init__(self):
        if self.graph not in get_args(Graph):
            raise ValueError(f"graph={self.graph!r} is none of {get_args(Graph)}")

    def log_score(
        self, output: Float[Array, "*n v"], z_t: Int[Array, "*n"], sigma: Float[Array, " *#n"]
    ) -> Float[Array, "*n v"]:
        """log s of every token in every place, nats, float32: 0 at the token that is there.

        -inf beyond the vocabulary and, with uniform noise, at the mask, which is no state then.
        `sigma` is the total noise, finite and above 0.
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
            raise ValueError(f"a score of {self.graph} noise gives no law of x_0 without its alpha")
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
            return f"a score has one noise level for all tokens; {name} has one for each"
        if process.schedule.alpha(jnp.ones(())) == 0:
            return f"a score needs finite noise at t = 1, and {name} has alpha = 0 there; set eps"
        return None


def log_expm1(sigma: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`log(exp(sigma) - 1)`, without overflow at large and cancellation at small `sigma`."""
    return sigma + jnp.log(-jnp.expm1(-sigma))
