"""Token editing: masks are filled and tokens replaced by threshold (LLaDA2.1, arXiv:2602.08676).

Each step calls the network once, which predicts a token v at every open position:

    masked, p(v) > write_above                    v is written
    a token other than v, p(v) > edit_above       v replaces it

The most confident masked position of a row is always written. A row is done when no mask is left
and a step edits nothing, at the latest `edits` steps after its last mask. Nothing is remasked, so
NFE is at most the number of positions of a row plus `edits`.

This decodes fast, but the samples do not have the network's distribution. It edits well with
networks trained to correct tokens; one trained on masks alone repeats its input.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from mdlm.diffusion import Diffusion
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler
from mdlm.samplers.requirements import no_inverse
from mdlm.samplers.state import SampleState, extended, placed, ranks
from mdlm.types import pytree


@pytree
class EditState(SampleState):
    """Adds the number of steps that each row has been without masks."""

    edited: Any  # Int[Array, " b"], steps since the row's last mask was written


@dataclass(frozen=True, kw_only=True)
class Editing(Sampler):
    """Fills masks and replaces tokens where the network's probability is above a threshold.

    A low `write_above` is fast and leaves mistakes to be edited; the published quality mode has
    `write_above=0.7`, `edit_above=0.5`. The token v is the likeliest at the default `temperature`
    of 0, else it is drawn.

    The network is given the time at which the expected share of masks is the row's present share,
    counted with at least one mask.
    """

    temperature: float = 0.0
    write_above: float = 0.95
    edit_above: float = 0.9
    edits: int = 16

    def __post_init__(self):
        super().__post_init__()
        for name in ("write_above", "edit_above"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1]")
        if self.edits < 0:
            raise ValueError(f"edits={self.edits}: must be at least 0")

    def incompatibility(self, process, parameterization, network=None):
        reason = super().incompatibility(process, parameterization, network)
        return reason or no_inverse(process, "a given share of masks")

    def init(self, keys, tokens, is_fixed, diffusion):
        state = super().init(keys, tokens, is_fixed, diffusion)
        return extended(state, EditState, edited=jnp.zeros_like(state.done, jnp.int32))

    def step(self, state: EditState, diffusion: Diffusion[Masked]) -> EditState:
        process = diffusion.process
        is_active = ~state.is_fixed & ~state.done[:, None]
        is_masked = is_active & process.is_masked(state.tokens)
        count = is_masked.sum(-1, keepdims=True)
        writable = (~state.is_fixed).sum(-1, keepdims=True)
        t = process.schedule.time_of(jnp.maximum(count, 1) / jnp.maximum(writable, 1))
        state, proposal = self.propose(
            state,
            is_active,
            t,
            diffusion,
            unseen=process.mask_id,
        )
        sure = proposal.confidence
        is_surest = ranks(jnp.where(is_masked, sure, -1.0)) == 0
        is_written = is_masked & (is_surest | (sure > self.write_above))
        is_other = is_active & ~is_masked & (proposal.tokens != state.tokens)
        is_edited = is_other & (sure > self.edit_above)
        had_masks = (count > 0)[:, 0]
        edited = jnp.where(had_masks, 0, state.edited + 1)
        is_left = (is_masked & ~is_written).any(-1)
        is_settled = (edited >= self.edits) | ~(had_masks | is_edited.any(-1))
        state = placed(state, proposal, is_written | is_edited)
        return replace(state, edited=edited, done=state.done | (~is_left & is_settled))
