"""A distribution of short sequences, enumerated, and a network that knows it exactly."""

import numpy as np

from mdlm.diffusion import Diffusion
from mdlm.evals.oracles import Enumerated, drawn
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import DenseLogits, Vocab

SYMBOLS, LENGTH, MASK = 3, 3, 3
VOCAB = Vocab(size=4, mask_id=MASK)
ENUMERATED = Enumerated(length=LENGTH, symbols=SYMBOLS)
SEQUENCES, P_DATA = ENUMERATED.sequences, ENUMERATED.p
PARTS = dict(
    process=Masked(schedule=LogLinear(eps=0.0)).with_vocab(VOCAB),
    parameterization=Subs().with_vocab(VOCAB),
)


def posterior(inputs, *, key=None):
    """The exact p(x_0 | z_t) of P_DATA, as logits; the mask's column is large, to be banned."""
    return DenseLogits(ENUMERATED.denoise(inputs).logits().at[..., MASK].set(50.0))


def sample(key, rows, sampler, *, tokens=None, is_fixed=None, denoise=posterior, **parts):
    """`drawn` with the parts of this oracle where no others are given; nothing is fixed."""
    if tokens is None:
        tokens, is_fixed = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), bool)
    shape = (rows, tokens.shape[1])
    tokens, is_fixed = np.broadcast_to(tokens, shape), np.broadcast_to(is_fixed, shape)
    return drawn(key, tokens, is_fixed, sampler, Diffusion(denoise=denoise, **{**PARTS, **parts}))


def frequencies(tokens):
    place = np.asarray(tokens) @ SYMBOLS ** np.arange(LENGTH - 1, -1, -1)
    return np.bincount(place, minlength=len(SEQUENCES)) / len(place)


def distance(tokens, p):
    return 0.5 * np.abs(frequencies(tokens) - p).sum()


def noise_floor(p, rows):
    """The mean total variation between a distribution and `rows` draws from it, at most."""
    return 0.5 * np.sqrt(2 / np.pi * p * (1 - p) / rows).sum()
