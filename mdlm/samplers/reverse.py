"""The reverse chain of any process, all positions at once, one network call a step.

    z_s ~ sum over x_0 of q(z_s | z_t, x_0) p(x_0 | z_t),    1 = t_N > ... > t_0 = 0

(Uniform and hybrid processes may plug p into the posterior instead: see their `posterior`.) This is
the sampler for processes in which a token may change more than once (uniform and hybrid noise) or
in which each token has a rate of its own. With absorbing noise at one rate its samples have the
same distribution as those of `Ancestral`, which is faster, as it makes logits only where a token is
written.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from mdlm.diffusion import Diffusion
from mdlm.draws import categorical_by_position
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.score import Score
from mdlm.processes.base import Process
from mdlm.samplers.grid import GridSampler
from mdlm.samplers.logits.shaping import shape_all
from mdlm.samplers.state import SampleState, rewritten, step_keys


@dataclass(frozen=True, kw_only=True)
class Reverse(GridSampler):
    """Takes the reverse step of the process at all positions at once.

    If a position still holds a noise token at t = 0 (a mask, if alpha(0) < 1), one more step draws
    its token from the network's distribution.

    Logits processing changes the network's distribution of the clean tokens. Under uniform noise a
    banned token may occur in intermediate steps, but not in the sample.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Process,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Parameterization,)

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is not None:
            return reason
        if isinstance(parameterization, Score) and parameterization.graph != "absorbing":
            return (
                "scores of uniform noise give no distribution of the clean token;"
                " use sampler=Tweedie()"
            )
        return None

    def step(self, state: SampleState, diffusion: Diffusion) -> SampleState:
        process = diffusion.process
        t, s = self.times(state)
        log_p0 = self.ask_everywhere(state, t, diffusion)
        shaped = shape_all(self, log_p0, state, diffusion.parameterization)
        keys = step_keys(state, "reverse")
        written = jax.lax.cond(
            state.step < self.steps,
            lambda: process.reverse(keys, shaped, state.tokens, t, s),
            lambda: jnp.where(
                process.is_noise(state.tokens), categorical_by_position(keys, shaped), state.tokens
            ),
        )
        tokens = jnp.where(state.is_fixed, state.tokens, written)
        is_left = process.is_noise(tokens) & ~state.is_fixed
        is_down = state.step >= self.steps - 1
        state = rewritten(state, tokens, log_p0)
        return replace(state, done=is_down & ~is_left.any(-1), nfe=state.nfe + 1)
