"""Caches of samplers: exact ones change no sample; approximate ones none if they refresh always."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.models import BlockDiT, Decoder, DiT
from mdlm.models.network import denoiser, init
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers import (
    Ancestral,
    BlockByBlock,
    ClassifierFree,
    D2Cache,
    Delayed,
    Dual,
    FinishedBlocks,
    FirstHitting,
    FixedCount,
    FreeCache,
    Parallel,
    ParallelBlocks,
    Prefix,
    ReCAP,
    Threshold,
)
from mdlm.samplers.loop import generate
from mdlm.types import Vocab

B, L, SIZE = 4, 16, 4
VOCAB = Vocab(size=11, mask_id=10)
SHAPE = dict(width=32, depth=2, heads=4, kv_heads=2, dtype="float32")
WHOLE = Decoder(**SHAPE)
SHIFT = Decoder(**SHAPE, shift=True)
BLOCKS = Decoder(**SHAPE, attends="blocks", block_size=SIZE)
BLOCKS_SHIFT = replace(BLOCKS, shift=True)
BLOCK_DIT = BlockDiT(width=32, depth=2, heads=4, cond_dim=16, block_size=SIZE, dtype="float32")


@cache
def shaken(network):
    """Parameters of which none is 0, so that the distributions depend on the tokens."""

    def make(key):
        shake = lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
        return jax.tree.map(shake, init(network, key, VOCAB.size))

    return jax.jit(make)(jax.random.key(0))


def sampled(network, sampler, *, open_from=None, is_valid=None):
    """Tokens and calls of a batch, whose rows have prompts of different lengths."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 10, (B, L))
    begin = np.array([[2], [5], [9], [L]] if open_from is None else open_from)
    is_fixed = np.arange(L)[None] < begin
    is_fixed[1, 10:15] = True  # an infilling: a block without open positions, and part of one
    condition = (lambda t: t) if isinstance(network, DiT) else None

    @jax.jit
    def run(params, keys, tokens, is_fixed, is_valid):
        diffusion = Diffusion(
            process=Masked().with_vocab(VOCAB),
            parameterization=Subs().with_vocab(VOCAB),
            denoise=denoiser(network, VOCAB.size, params, condition=condition),
            shift=network.shift,
        )
        known = dict(sampler=sampler, diffusion=diffusion, is_valid=is_valid)
        return generate(keys, tokens, is_fixed, **known)

    keys = by_row(jax.random.key(7), jnp.arange(B))
    samples = run(shaken(network), keys, tokens, is_fixed, is_valid)
    found = np.asarray(samples.tokens)
    assert (found[is_fixed] == tokens[is_fixed]).all() and (found != VOCAB.mask_id).all()
    return found, int(samples.nfe)


@pytest.mark.parametrize(
    ("network", "sampler"),
    [
        (BLOCKS, ParallelBlocks(block_size=SIZE, rule=Threshold(tau=0.5))),
        (BLOCKS_SHIFT, ParallelBlocks(block_size=SIZE, order="random")),
        (BLOCK_DIT, BlockByBlock(block_size=SIZE, steps=8)),
        (
            BLOCKS,
            BlockByBlock(
                block_size=SIZE, steps=3, guidance=ClassifierFree(weight=1.5, without="prompt")
            ),
        ),
    ],
    ids=["parallel", "shift", "by block", "guided"],
)
def test_finished_blocks_change_no_sample(network, sampler):
    assert sampler.cache == FinishedBlocks() and sampler.cache.exact
    found, calls = sampled(network, sampler)
    due, due_calls = sampled(network, replace(sampler, cache=None))
    np.testing.assert_array_equal(found, due)
    # Prompts are read in one more call (with guidance two).
    assert calls == due_calls + (2 if sampler.guidance else 1)


def test_padding_is_not_read_from_a_cache():
    is_valid = np.arange(L)[None] < np.array([[L], [L], [13], [L]])
    sampler = ParallelBlocks(block_size=SIZE)
    found, _ = sampled(BLOCKS, sampler, is_valid=is_valid)
    due, _ = sampled(BLOCKS, replace(sampler, cache=None), is_valid=is_valid)
    np.testing.assert_array_equal(found[is_valid], due[is_valid])


IN_BLOCKS = Parallel(block_size=5, rule=Threshold(tau=0.4))
ALWAYS = [
    ("prefix", WHOLE, IN_BLOCKS, Prefix(refresh=1)),
    ("dual", SHIFT, IN_BLOCKS, Dual(refresh=1)),
    ("delayed", WHOLE, Ancestral(steps=6), Delayed(refresh=1)),
    ("freecache", SHIFT, FirstHitting(per_call=2), FreeCache(refresh=1)),
    ("recap", WHOLE, Parallel(rule=FixedCount(per_call=3)), ReCAP(refresh=1)),
    ("d2cache", SHIFT, IN_BLOCKS, D2Cache(refresh=1)),
    (
        "guided",
        WHOLE,
        replace(IN_BLOCKS, guidance=ClassifierFree(weight=1.5, without="prompt")),
        Dual(refresh=1),
    ),
]


@pytest.mark.parametrize(
    ("network", "sampler", "policy"), [case[1:] for case in ALWAYS], ids=[c[0] for c in ALWAYS]
)
def test_a_refresh_at_each_call_is_no_cache(network, sampler, policy):
    assert not policy.exact
    found = sampled(network, replace(sampler, cache=policy))
    due = sampled(network, sampler)
    np.testing.assert_array_equal(found[0], due[0])
    assert found[1] == due[1]


SELDOM = [
    ("prefix", WHOLE, IN_BLOCKS, Prefix()),
    ("dual", SHIFT, IN_BLOCKS, Dual()),
    ("delayed", WHOLE, Ancestral(steps=6), Delayed()),
    ("freecache", SHIFT, replace(IN_BLOCKS, order="left", rule=FixedCount()), FreeCache()),
    ("recap", WHOLE, Parallel(rule=FixedCount(per_call=2)), ReCAP(local=6)),
    ("d2cache", SHIFT, IN_BLOCKS, D2Cache(masks=3, sigma=2.0)),
    ("d2cache, times", WHOLE, Ancestral(steps=9), D2Cache(masks=3, sigma=2.0)),
    (
        "guided",
        WHOLE,
        replace(IN_BLOCKS, guidance=ClassifierFree(weight=1.5, without="prompt")),
        Dual(refresh=3),
    ),
]


@pytest.mark.parametrize(
    ("network", "sampler", "policy"), [case[1:] for case in SELDOM], ids=[c[0] for c in SELDOM]
)
def test_rows_do_not_depend_on_the_other_rows(network, sampler, policy):
    """Every row is full when it wants to be, whatever the others are."""
    sampler = replace(sampler, cache=policy)
    together, _ = sampled(network, sampler)
    begin = [[2], [5], [9], [L]]
    for row in (0, 1):
        others_done = [[L] if i != row else at for i, at in enumerate(begin)]
        alone, _ = sampled(network, sampler, open_from=others_done)
        np.testing.assert_array_equal(together[row], alone[row])


def test_caches_that_cannot_be_used_say_why():
    with pytest.raises(ValueError, match="refresh=0: must be at least 1"):
        Dual(refresh=0)
    with pytest.raises(ValueError, match="local=0"):
        ReCAP(local=0)
    with pytest.raises(ValueError, match="share=1.5"):
        D2Cache(share=1.5)
    with pytest.raises(ValueError, match="sigma=0"):
        D2Cache(sigma=0.0)
    with pytest.raises(ValueError, match="window=-1"):
        FreeCache(window=-1)
    parts = Masked().with_vocab(VOCAB), Subs().with_vocab(VOCAB)
    assert Parallel(cache=Dual()).incompatibility(*parts, WHOLE) is None
    reason = Parallel(cache=Dual()).incompatibility(*parts, DiT(self_conditioning=True))
    assert reason is not None and "reads its own output" in reason
    reason = ParallelBlocks(block_size=4, cache=Dual()).incompatibility(*parts, BLOCKS)
    assert reason is not None and 'attends="all", not "blocks"' in reason
    reason = Parallel(cache=FinishedBlocks()).incompatibility(*parts, WHOLE)
    assert reason is not None and 'attends="blocks", not "all"' in reason
