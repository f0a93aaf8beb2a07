"""Whole sampling runs of the public MDLM code, from its own uniforms.

That code draws each masked position jointly over the tokens and the mask, by an exponential race
in float32. Here only the draw is replaced by that race: loop, process, parameterization, network
and windows are ours.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.generation.windows import Windows, generate_long
from mdlm.interop.mdlm_torch import params_from
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.network import denoiser
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.samplers.loop import generate
from mdlm.samplers.state import SampleState
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import NetInput, Vocab, pytree

pytestmark = pytest.mark.golden
COLUMNS, MASK = 67, 66
VOCAB = Vocab(size=COLUMNS, mask_id=MASK)
NETWORK = DiT(width=64, depth=2, heads=4, cond_dim=32, dtype="float32")
CAUSAL = CausalTransformer(width=64, depth=2, heads=4, dtype="float32")


@pytree
class RaceState(SampleState):
    """What the reference keeps beside the tokens."""

    log_p0: Any  # Float[Array, "b l v"], the last answer of the network
    is_stale: Any  # Bool[Array, ""], whether it is to be asked again
    states: Any  # Int[Array, "n b l"], tokens after each step


@dataclass(frozen=True, kw_only=True, eq=False)
class Race(Sampler):
    """argmax p / (1e-10 - log(u + 1e-10)), p over tokens and mask, u stored."""

    u: Any  # Float[Array, "n b l v"]
    t: Any  # Float[Array, " n"]
    dt: float
    t_last: float  # the time of the clean-up by argmax
    is_cached: bool  # whether an answer serves until the tokens change

    def init(self, keys, tokens, is_fixed, diffusion):
        state = super().init(keys, tokens, is_fixed, diffusion)
        shape = tokens.shape
        return RaceState(
            **{name: getattr(state, name) for name in state.__dataclass_fields__},
            log_p0=jnp.zeros((*shape, COLUMNS)),
            is_stale=jnp.asarray(True),
            states=jnp.zeros((len(self.t), *shape), state.tokens.dtype),
        )

    def step(self, state, diffusion):
        process, parameterization = diffusion.process, diffusion.parameterization
        b = state.tokens.shape[0]
        t = jnp.full((b, 1), self.t[state.step])

        def ask():
            output = diffusion.denoise(NetInput(tokens=state.tokens, t=t)).logits()
            return parameterization.log_p0(output, state.tokens, t)

        log_p0 = jax.lax.cond(state.is_stale, ask, lambda: state.log_p0)
        p = process.reverse_probabilities(log_p0, state.tokens, t, t - self.dt)
        tokens = jnp.argmax(p / (1e-10 - jnp.log(self.u[state.step] + 1e-10)), axis=-1)
        tokens = tokens.astype(state.tokens.dtype)
        is_changed = (tokens != state.tokens).any()
        return replace(
            state,
            tokens=tokens,
            log_p0=log_p0,
            nfe=state.nfe + state.is_stale,
            is_stale=is_changed if self.is_cached else jnp.asarray(True),
            states=state.states.at[state.step].set(tokens),
            done=jnp.full(b, state.step + 1 == len(self.t)),
        )

    def finish(self, state, diffusion):
        """The likeliest token wherever a mask is left; the network is asked in any case."""
        t = jnp.full((state.tokens.shape[0], 1), self.t_last)
        output = diffusion.denoise(NetInput(tokens=state.tokens, t=t)).logits()
        tokens = jnp.argmax(diffusion.parameterization.log_p0(output, state.tokens, t), axis=-1)
        return replace(state, tokens=tokens, nfe=state.nfe + 1)


class Recorder(Race):
    """Race, which gives the states in place of the final tokens."""

    def finish(self, state, diffusion):
        final = super().finish(state, diffusion)
        return replace(final, tokens=jnp.concatenate([state.states, final.tokens[None]]))


def diffusion_of(golden, schedule, condition=None):
    params = params_from(golden("mdlm_dit.safetensors"), NETWORK, COLUMNS)
    return Diffusion(
        process=Masked(schedule=schedule).with_vocab(VOCAB),
        parameterization=Subs().with_vocab(VOCAB),
        denoise=denoiser(NETWORK, COLUMNS, params, condition=condition),
    )


def empty(key, b, l):
    keys = jax.random.split(key, b)
    return keys, jnp.zeros((b, l), jnp.int32), jnp.zeros((b, l), bool)


@pytest.mark.parametrize(
    "name, schedule, is_cached, is_timed",
    [
        ("ddpm", LogLinear(eps=1e-3), False, False),
        ("ddpm_cache", LogLinear(eps=0.0), True, False),
        ("ddpm_cache_time", LogLinear(eps=0.0), False, True),
        ("cache48", LogLinear(eps=0.0), True, False),
    ],
)
def test_trajectory(golden, key, name, schedule, is_cached, is_timed):
    data = golden("mdlm_trajectories.npz")
    states = data[f"{name}__states"]
    steps, b, l = states.shape
    eps = float(data["eps"])
    sampler = Recorder(
        u=jnp.asarray(data["cache48__u" if name == "cache48" else "u"]),
        t=jnp.asarray(np.linspace(1, eps, steps + 1)[:-1], jnp.float32),
        dt=(1 - eps) / steps,
        t_last=eps,
        is_cached=is_cached,
    )
    # The network is fed sigma of the training schedule, whatever move chances the sampler uses.
    condition = LogLinear(eps=1e-3).sigma if is_timed else None
    diffusion = diffusion_of(golden, schedule, condition)
    run = jax.jit(lambda *a: generate(*a, sampler=sampler, diffusion=diffusion))
    result = run(*empty(key, b, l))
    np.testing.assert_array_equal(result.tokens[:-1], states)
    np.testing.assert_array_equal(result.tokens[-1], data[f"{name}__final"])
    assert int(result.nfe) == int(data[f"{name}__nfe"])


def test_semi_autoregressive_windows(golden, key):
    data = golden("mdlm_trajectories.npz")
    dt = float(data["semiar__dt"])
    u = jnp.asarray(data["semiar__u"])
    windows = int(data["semiar__num_strides"]) + 1
    per_window = u.shape[0] // windows
    b, l = u.shape[1:3]
    t = jnp.asarray(1 - dt * np.arange(per_window), jnp.float32)  # down to 0: one step past it
    diffusion = diffusion_of(golden, LogLinear(eps=0.0))
    changes = []

    @jax.jit
    def compiled(keys, tokens, is_fixed, u):
        sampler = Recorder(u=u, t=t, dt=dt, t_last=0.0, is_cached=True)
        return generate(keys, tokens, is_fixed, sampler=sampler, diffusion=diffusion)

    def run(keys, tokens, is_fixed):
        done = len(changes)
        result = compiled(keys, tokens, is_fixed, u[done * per_window : (done + 1) * per_window])
        start = np.where(is_fixed, tokens, MASK)
        states = np.concatenate([start[None], result.tokens[:-1]])
        changes.append(sum((a != b).any() for a, b in zip(states[:-1], states[1:], strict=True)))
        return replace(result, tokens=result.tokens[-1])

    expected = data["semiar__tokens"]
    result = generate_long(
        jax.random.split(key, b),
        [[]] * b,
        expected.shape[1],
        window=Windows(length=l, stride=int(data["semiar__stride_length"])),
        run=run,
        vocab=VOCAB,
    )
    assert result.windows == windows
    np.testing.assert_array_equal(result.tokens, expected)
    assert result.nfe == int(data["semiar__nfe"])
    assert sum(changes) == int(data["semiar__sampling_steps"])


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredGumbel(LeftToRight):
    """argmax(log p + noise), the noise stored for positions 1.. of each row."""

    noise: Any  # Float[Array, "b l-1 v"]

    def choose(self, keys, log_p0, at, state):
        l = state.tokens.shape[1]
        return jnp.argmax(log_p0 + self.noise[at // l, at % l - 1], axis=-1)


def test_left_to_right(golden, key):
    data = golden("mdlm_ar.npz")
    expected = data["sample_tokens"]
    b, l = expected.shape
    params = params_from(golden("mdlm_ar.safetensors"), CAUSAL, COLUMNS)
    keys, _, _ = empty(key, b, l)
    result = jax.jit(
        lambda keys: generate(
            keys,
            jnp.full((b, l), int(data["sample_bos"])),
            jnp.broadcast_to(jnp.arange(l)[None] == 0, (b, l)),
            sampler=StoredGumbel(noise=jnp.asarray(data["sample_gumbel"])),
            diffusion=Diffusion(
                process=Masked().with_vocab(VOCAB),
                parameterization=Subs().with_vocab(VOCAB),
                denoise=denoiser(CAUSAL, COLUMNS, params),
            ),
        )
    )(keys)
    np.testing.assert_array_equal(result.tokens, expected)
    assert int(result.nfe) == 1 + l - 1  # the prompts, then every token but the first
