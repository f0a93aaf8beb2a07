"""Psi samplers: ancestral steps mixed with renoising steps (Duo 2, arXiv:2602.21185).

    q(z_s | z_t) = kappa q(z_s | z_t, x_0) + (1 - kappa) q(z_s | x_0),    x_0 ~ p(x_0 | z_t)

At each position independently: with probability kappa the reverse step of the process, else a token
drawn from the network's distribution and noised to s. If p is the true posterior, both give the
marginal distribution of z_s, and so does every mixture, for any process that noises each token
independently. kappa = 1 is ancestral sampling. With kappa below 1 written tokens may change again.

For masking this is ReMDM with sigma = (1 - kappa)(1 - alpha_s): see `kappa_of`, `sigma_of`, and
`Remasking`. With uniform or hybrid noise a token that looks clean may be redrawn conditioned on all
tokens, its own value included: from p(x_0 | z_t), not from the distribution given the other tokens
that is plugged into the reverse step (see `interpolating`).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from mdlm.diffusion import Diffusion
from mdlm.draws import categorical_by_position, uniforms
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.subs import Subs
from mdlm.processes.base import Process
from mdlm.processes.interpolating import Interpolating
from mdlm.processes.masked import Masked
from mdlm.samplers.grid import GridSampler, LastStep
from mdlm.samplers.logits.shaping import shape_all
from mdlm.samplers.remask import Exchange, Remasking, reveal_probability
from mdlm.samplers.requirements import rates_differ
from mdlm.samplers.state import SampleState, rewritten, step_keys


@dataclass(frozen=True, kw_only=True)
class Psi(Remasking, LastStep, GridSampler):
    """Takes the ancestral step with probability `kappa` at each position, else renoises.

    `kappa` is one number, or numbers at equally spaced times from 0 to 1, interpolated linearly:
    (1, 1, 0.95, 1, 1) leaves the beginning and the end of sampling ancestral. A step from t to s
    uses kappa at t.

    For masking, logits are made at revealed positions only, and a step that reveals nothing makes
    no call; for other processes they are made at all positions, `steps` times.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Masked, Interpolating)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Subs, Mean)

    kappa: float | tuple[float, ...] = 0.95

    def __post_init__(self):
        super().__post_init__()
        if not self.kappas or not all(0 <= kappa <= 1 for kappa in self.kappas):
            raise ValueError(f"kappa={self.kappa}: every number must be in [0, 1]")

    @property
    def kappas(self) -> tuple[float, ...]:
        return self.kappa if isinstance(self.kappa, tuple) else (self.kappa,)

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        if reason is None and isinstance(process, Masked) != isinstance(parameterization, Subs):
            fitting = "Subs" if isinstance(process, Masked) else "Mean"
            return f"process={type(process).__name__}(...) needs parameterization={fitting}(...)"
        return reason or rates_differ(process, "removes")

    def kappa_at(self, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The share of ancestral steps at time `t`."""
        return jnp.interp(t, np.linspace(0, 1, len(self.kappas)), jnp.asarray(self.kappas))

    def exchange(
        self,
        state: SampleState,
        t: Float[Array, "b 1"],
        s: Float[Array, "b 1"],
        *,
        process: Masked,
    ) -> Exchange:
        schedule = process.schedule
        noised_t, noised_s = schedule.one_minus_alpha(t), schedule.one_minus_alpha(s)
        sigma = sigma_of(self.kappa_at(t), noised_s)
        gap = schedule.alpha_gap(s, t)
        return Exchange(t, reveal_probability(noised_t, noised_s, gap, sigma), sigma)

    def step(self, state: SampleState, diffusion: Diffusion) -> SampleState:
        if isinstance(diffusion.process, Masked):
            return super().step(state, diffusion)
        return self._mix(state, diffusion)

    def _mix(self, state: SampleState, diffusion: Diffusion[Interpolating]) -> SampleState:
        process = diffusion.process
        t, s = self.times(state)
        log_p0 = self.ask_everywhere(state, t, diffusion)
        shaped = shape_all(self, log_p0, state, diffusion.parameterization)
        known = process.given_all(shaped, state.tokens, jnp.broadcast_to(t, state.tokens.shape))
        x_0 = categorical_by_position(step_keys(state, "which"), known)

        def mixed():
            u = uniforms(step_keys(state, "whether"), state.tokens.shape[1])
            back = process.reverse(step_keys(state, "reverse"), shaped, state.tokens, t, s)
            anew = process.corrupt(step_keys(state, "noise"), x_0, s)
            return jnp.where(u < self.kappa_at(t), back, anew)

        def resolved():
            chosen = jnp.argmax(known, axis=-1) if self.last == "argmax" else x_0
            return jnp.where(process.is_noise(state.tokens), chosen, state.tokens)

        written = jax.lax.cond(state.step < self.steps, mixed, resolved)
        tokens = jnp.where(state.is_fixed, state.tokens, written.astype(state.tokens.dtype))
        is_left = process.is_noise(tokens) & ~state.is_fixed
        state = rewritten(state, tokens, log_p0)
        is_down = state.step >= self.steps - 1
        return replace(state, done=is_down & ~is_left.any(-1), nfe=state.nfe + 1)


def kappa_of(sigma: Float[Array, "*s"], noised_s: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The kappa that removes tokens with probability `sigma`, where 1 - alpha(s) is `noised_s`.

    It exists for sigma <= 1 - alpha(s); for a larger sigma it is 0, which removes tokens with
    probability 1 - alpha(s).
    """
    return 1 - jnp.minimum(sigma / jnp.maximum(noised_s, 1e-30), 1.0)


def sigma_of(kappa: Float[Array, "*s"], noised_s: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The probability of removing a token: (1 - kappa)(1 - alpha(s))."""
    return (1 - kappa) * noised_s
