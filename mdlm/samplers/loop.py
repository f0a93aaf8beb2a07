"""The sampling loop of all samplers.

It runs `step` until every row is done, then `finish` once. NFE is the number of network calls, for
the whole batch.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
from jax import Array
from jaxtyping import Bool, Int, Key

from mdlm.diffusion import Diffusion
from mdlm.samplers.base import Sampler
from mdlm.samplers.state import Samples, SampleState
from mdlm.types import NetInput, Prediction


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A sampler with everything that its steps need.

    `generate` runs all steps in one program; `trace.generate_traced` runs them one by one from the
    host. Every network call gets `is_valid`, `positions` and `label`. With guidance, `nfe` counts
    every network call that the guidance makes.
    """

    sampler: Sampler
    diffusion: Diffusion
    is_valid: Any = None  # Bool[Array, "b l"]
    positions: Any = None  # Int[Array, "b l"]
    label: Any = None  # Int[Array, " b"]

    def begin(
        self, keys: Key[Array, " b"], tokens: Int[Array, "b l"], is_fixed: Bool[Array, "b l"]
    ) -> SampleState:
        """The state before the first step."""
        state = self.sampler.init(keys, tokens, is_fixed, self.diffusion)
        return self._counted(state, self.sampler.begin(state, self._conditioned(state)))

    def advance(self, state: SampleState) -> SampleState:
        """Takes one step; to be called until every row is done."""
        after = self._counted(state, self.sampler.step(state, self._conditioned(state)))
        return replace(after, step=state.step + 1)

    def finish(self, state: SampleState) -> SampleState:
        """Finishes the samples, once, after the last step."""
        return self._counted(state, self.sampler.finish(state, self._conditioned(state)))

    def _conditioned(self, state: SampleState) -> Diffusion:
        """The diffusion with a guided network, which gets `is_valid`, `positions` and `label`."""
        diffusion, guidance = self.diffusion, self.sampler.guidance
        if guidance is not None:
            diffusion = guidance.wrap(diffusion, state.is_fixed)
        denoise = diffusion.denoise
        known = dict(is_valid=self.is_valid, positions=self.positions, label=self.label)

        # Guidance withholds some of these values, so they are set in a call before it.
        def ask(inputs: NetInput, *, key: Key[Array, ""] | None = None) -> Prediction:
            return denoise(replace(inputs, **known), key=key)

        return replace(diffusion, denoise=ask)

    def _counted(self, before: SampleState, after: SampleState) -> SampleState:
        guidance = self.sampler.guidance
        if guidance is None:
            return after
        return replace(after, nfe=before.nfe + guidance.calls * (after.nfe - before.nfe))


def generate(
    keys: Key[Array, " b"],
    tokens: Int[Array, "b l"],
    is_fixed: Bool[Array, "b l"],
    *,
    sampler: Sampler,
    diffusion: Diffusion,
    is_valid: Bool[Array, "b l"] | None = None,
    positions: Int[Array, "b l"] | None = None,
    label: Int[Array, " b"] | None = None,
) -> Samples:
    """Draws one sequence per row; meant to be jitted whole, with the parameters as an argument.

    `tokens` is read where `is_fixed`, and never changes there; elsewhere it is ignored. Positions
    that are not `is_valid` (padding of a shorter row) keep their token too and are not attended
    to. A network that takes labels is conditioned on each row's `label`. Arguments are not checked
    here: see `generation.prompts`.
    """
    if is_valid is not None:
        is_fixed = is_fixed | ~is_valid
    loop = Loop(
        sampler=sampler,
        diffusion=diffusion,
        is_valid=is_valid,
        positions=positions,
        label=label,
    )
    state = loop.begin(keys, tokens, is_fixed)
    state = jax.lax.while_loop(lambda state: ~state.done.all(), loop.advance, state)
    state = loop.finish(state)
    return Samples(tokens=state.tokens, nfe=state.nfe)
