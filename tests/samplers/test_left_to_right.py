"""The autoregressive sampler, with a Markov chain as its causal network."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.base import generate
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.types import DenseLogits, Vocab

VOCAB = Vocab(size=5, mask_id=4, bos_id=0)
TRANSITION = np.random.default_rng(0).dirichlet(np.full(4, 0.7), size=4)


def chain(inputs, *, key=None):
    """Position i: the law of token i given token i - 1 (nothing sensible at position 0)."""
    assert inputs.t is None
    log_p = jnp.log(jnp.asarray(np.pad(TRANSITION, ((0, 1), (0, 1))), jnp.float32))
    return DenseLogits(log_p[jnp.roll(inputs.tokens, 1, axis=1)].at[..., VOCAB.mask_id].set(9.0))


def run(keys, tokens, is_fixed, **settings):
    @jax.jit
    def generated(keys, tokens, is_fixed):
        return generate(
            keys,
            tokens,
            is_fixed,
            sampler=LeftToRight(**settings),
            process=Masked().with_vocab(VOCAB),
            parameterization=Subs().with_vocab(VOCAB),
            denoise=chain,
        )

    return generated(keys, tokens, is_fixed)


def test_samples_follow_the_chain_exactly(key):
    rows, length = 8000, 4
    tokens = np.zeros((rows, length), np.int32)
    is_fixed = np.zeros((rows, length), bool)
    is_fixed[:, 0] = True
    samples = run(by_row(key, jnp.arange(rows)), tokens, is_fixed)
    assert int(samples.nfe) == length - 1
    drawn = np.asarray(samples.tokens)
    assert (drawn[:, 0] == VOCAB.bos_id).all() and (drawn < 4).all()
    for before in range(4):
        for position in range(1, length):
            after = drawn[drawn[:, position - 1] == before, position]
            if len(after) < 100:
                continue
            p = TRANSITION[before]
            share = np.bincount(after, minlength=4) / len(after)
            assert (np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / len(after))).all()


def test_fixed_tokens_stay_and_cost_no_call(key):
    tokens = np.array([[0, 3, 3, 0, 2, 1], [0, 1, 3, 1, 2, 1]])
    is_fixed = np.array([[True, True, False, True, False, True]]).repeat(2, axis=0)
    samples = run(by_row(key, jnp.arange(2)), tokens, is_fixed)
    drawn = np.asarray(samples.tokens)
    assert (drawn[is_fixed] == tokens[is_fixed]).all() and (drawn != VOCAB.mask_id).all()
    assert int(samples.nfe) == 2  # positions 2 and 4


def test_greedy_takes_the_likeliest_successor(key):
    tokens, is_fixed = np.zeros((1, 5), np.int32), np.eye(1, 5, dtype=bool)
    drawn = np.asarray(run(by_row(key, jnp.arange(1)), tokens, is_fixed, temperature=0.0).tokens)[0]
    for before, after in zip(drawn[:-1], drawn[1:], strict=True):
        assert after == TRANSITION[before].argmax()
