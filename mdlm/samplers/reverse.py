"""The reverse chain of any process, all positions at once, one network call a step.

    z_s ~ sum over x_0 of q(z_s | z_t, x_0) p(x_0 | z_t),    1 = t_N > ... > t_0 = 0

The sampler of processes in which a token may change more than once (uniform and hybrid noise) or
in which tokens have rates of their own. With absorbing noise at one rate it has the law of
`Ancestral`, which makes logits only where a token is written and is the faster one there.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from mdlm.draws import categorical
from mdlm.keys import by_row
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.score import Score
from mdlm.processes.base import Process
from mdlm.samplers.base import Sampler, SampleState, step_keys
from mdlm.samplers.filters import filter_log_p
from mdlm.times import cosine_grid, uniform_grid
from mdlm.types import Denoise, NetInput


@dataclass(frozen=True, kw_only=True)
class Reverse(Sampler):
    """`steps` steps of `process.reverse` down a `grid` of times, "uniform" or "cosine" (shorter
    steps near noise). Where a position is still plainly noise at t = 0 (a mask, under a schedule
    with alpha(0) < 1), one more step draws its token from the network's law.

    `temperature`, `top_k` and `top_p` shape the network's law of the clean tokens.
    """

    processes: ClassVar[tuple[type[Process], ...]] = (Process,)
    parameterizations: ClassVar[tuple[type[Parameterization], ...]] = (Parameterization,)
    steps: int = 128
    grid: Literal["uniform", "cosine"] = "uniform"

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is below 1")
        if self.grid not in ("uniform", "cosine"):
            raise ValueError(f'grid={self.grid!r} is neither "uniform" nor "cosine"')

    def refuses(self, process: Process, parameterization: Parameterization) -> str | None:
        if isinstance(parameterization, Score) and parameterization.graph != "absorbing":
            return "ratios between tokens give no law of the clean one; use sampler=Tweedie()"
        return None

    def step(
        self,
        state: SampleState,
        *,
        process: Process,
        parameterization: Parameterization,
        denoise: Denoise,
    ) -> SampleState:
        b, l = state.tokens.shape
        times = (cosine_grid if self.grid == "cosine" else uniform_grid)(self.steps)
        times = jnp.append(times, 0.0)
        t = jnp.full((b, 1), times[state.step])
        s = jnp.full((b, 1), times[state.step + 1])
        logits = denoise(NetInput(tokens=state.tokens, t=t)).logits()
        log_p0 = parameterization.log_p0(logits, state.tokens, t)
        # A clean token is no noise, though D3PM's network may put mass there.
        is_noise = process.is_noise(jnp.arange(log_p0.shape[-1]))
        log_p0 = jax.nn.log_softmax(jnp.where(is_noise[None, None], -jnp.inf, log_p0), axis=-1)
        shaped = filter_log_p(
            log_p0.reshape(b * l, -1),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        ).reshape(log_p0.shape)
        keys = step_keys(state, "reverse")
        written = jax.lax.cond(
            state.step < self.steps,
            lambda: process.reverse(keys, shaped, state.tokens, t, s),
            lambda: jnp.where(
                process.is_noise(state.tokens), self._draw(keys, shaped), state.tokens
            ),
        )
        tokens = jnp.where(state.is_fixed, state.tokens, written)
        is_left = process.is_noise(tokens) & ~state.is_fixed
        is_down = state.step >= self.steps - 1
        return replace(state, tokens=tokens, done=is_down & ~is_left.any(-1), nfe=state.nfe + 1)

    def _draw(self, keys: Key[Array, " b"], log_p: Float[Array, "b l v"]) -> Int[Array, "b l"]:
        b, l, v = log_p.shape
        each = jax.vmap(lambda key: by_row(key, jnp.arange(l)))(keys)
        return categorical(each.reshape(b * l), log_p.reshape(b * l, v)).reshape(b, l)
