"""A law of short sequences, enumerated, and a network that knows it exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm.diffusion import Diffusion
from mdlm.evals.oracles import Enumerated
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.loop import generate
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import DenseLogits, Vocab

SYMBOLS, LENGTH, MASK = 3, 3, 3
VOCAB = Vocab(size=4, mask_id=MASK)
ENUMERATED = Enumerated(length=LENGTH, symbols=SYMBOLS)
SEQUENCES, LAW = ENUMERATED.sequences, ENUMERATED.p
PARTS = dict(
    process=Masked(schedule=LogLinear(eps=0.0)).with_vocab(VOCAB),
    parameterization=Subs().with_vocab(VOCAB),
)


def posterior(inputs, *, key=None):
    """The exact p(x_0 | z_t) of LAW, as logits; the mask's column is large, to be banned."""
    return DenseLogits(ENUMERATED.denoise(inputs).logits().at[..., MASK].set(50.0))


def sample(
    key,
    rows,
    sampler,
    *,
    tokens=None,
    is_fixed=None,
    denoise=posterior,
    **parts,
):
    if tokens is None:
        tokens, is_fixed = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), bool)

    diffusion = Diffusion(denoise=denoise, **{**PARTS, **parts})

    @jax.jit
    def run(keys, tokens, is_fixed):
        return generate(keys, tokens, is_fixed, sampler=sampler, diffusion=diffusion)

    shape = (rows, tokens.shape[1])
    keys = by_row(key, jnp.arange(rows))
    return run(keys, np.broadcast_to(tokens, shape), np.broadcast_to(is_fixed, shape))


def frequencies(tokens):
    place = np.asarray(tokens) @ SYMBOLS ** np.arange(LENGTH - 1, -1, -1)
    return np.bincount(place, minlength=len(SEQUENCES)) / len(place)


def distance(tokens, law):
    return 0.5 * np.abs(frequencies(tokens) - law).sum()


def noise_floor(law, rows):
    """The mean total variation between a law and `rows` draws from it, at most."""
    return 0.5 * np.sqrt(2 / np.pi * law * (1 - law) / rows).sum()
