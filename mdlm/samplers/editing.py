"""Token editing: masks are written and tokens rewritten by threshold (LLaDA2.1, arXiv:2602.08676).

The network is asked once a step what stands at every open position, and v is its answer there:

    masked, p(v) > write_above                    v is written
    a token other than v, p(v) > edit_above       v is written over it

The surest mask of a row is written in any case. A row is done when no mask is left and a step
edits nothing, at the latest `edits` steps after its last mask. Nothing is masked again, so NFE is
at most the positions of a row and `edits` more.

This decodes fast and is no sample from the network's law. It edits well with networks that were
trained to correct tokens: one trained for masking alone repeats what it sees.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from mdlm.diffusion import Diffusion
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler, no_inverse
from mdlm.samplers.state import SampleState, extended, placed, ranks
from mdlm.types import pytree


@pytree
class EditState(SampleState):
    """Counts how long each row has been without masks."""

    edited: Any  # Int[Array, " b"], steps since the row's last mask was written


@dataclass(frozen=True, kw_only=True)
class Editing(Sampler):
    """Low `write_above` is fast and leaves mistakes to be edited; the published quality mode
    has 0.7 and 0.5. The answer v is the likeliest token at the default `temperature`, else a draw.

    The network is told the time at which as many of a row's open positions are masked as are (one
    at least).
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
