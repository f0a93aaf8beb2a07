"""Sampling block after block, against distributions that are known exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.blocks import BlockByBlock
from mdlm.samplers.loop import generate
from mdlm.samplers.parallel import ParallelBlocks
from mdlm.samplers.unmasking_rules import Share
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.schedules.per_token import LearnedPolynomial
from mdlm.types import DenseLogits, Vocab

SYMBOLS, LENGTH, MASK = 3, 3, 3
VOCAB = Vocab(size=4, mask_id=MASK)
SEQUENCES = np.array(list(itertools.product(range(SYMBOLS), repeat=LENGTH)))
P_DATA = np.random.default_rng(0).dirichlet(np.full(len(SEQUENCES), 0.4))
ONES = np.eye(VOCAB.size, dtype=np.float32)[SEQUENCES]


def network(block_size):
    """The exact p(x_i | own block as it is, clean blocks before), asked block by block."""
    of = np.arange(LENGTH) // block_size

    def denoise(inputs, *, key=None):
        logits = jnp.zeros((*inputs.tokens.shape, VOCAB.size))
        for j in range(LENGTH // block_size):
            seen = jnp.where((of == j)[None], inputs.tokens, MASK)
            seen = jnp.where((of < j)[None], inputs.clean, seen)
            agrees = (seen[:, None] == SEQUENCES[None]) | (seen[:, None] == MASK)
            weight = jnp.where(agrees.all(-1), P_DATA[None].astype(np.float32), 0.0)
            p = jnp.einsum("bn,nlv->blv", weight, ONES)
            logits = jnp.where((of == j)[None, :, None], jnp.log(p), logits)
        return DenseLogits(logits)

    return denoise


def sample(key, rows, sampler, *, tokens=None, is_fixed=None, schedule=None, denoise=None):
    if tokens is None:
        tokens, is_fixed = np.zeros((1, LENGTH), np.int32), np.zeros((1, LENGTH), bool)
    shape = (rows, tokens.shape[1])

    @jax.jit
    def run(keys, tokens, is_fixed):
        return generate(
            keys,
            tokens,
            is_fixed,
            sampler=sampler,
            diffusion=Diffusion(
                process=Masked(schedule=schedule or LogLinear(eps=0.0)).with_vocab(VOCAB),
                parameterization=Subs().with_vocab(VOCAB),
                denoise=denoise or network(sampler.block_size),
            ),
        )

    return run(
        by_row(key, jnp.arange(rows)),
        np.broadcast_to(tokens, shape),
        np.broadcast_to(is_fixed, shape),
    )


def off_by(tokens, p):
    """Total variation of the samples from a distribution, in units of that of samples from it."""
    place = np.asarray(tokens) @ SYMBOLS ** np.arange(LENGTH - 1, -1, -1)
    found = np.bincount(place, minlength=len(SEQUENCES)) / len(place)
    floor = 0.5 * np.sqrt(2 / np.pi * p * (1 - p) / len(place)).sum()
    return 0.5 * np.abs(found - p).sum() / floor


def test_single_tokens_have_the_distribution(key):
    """However few the steps: one token to a block is drawn knowing all before it."""
    for steps in (1, 3):
        samples = sample(key, 100_000, BlockByBlock(block_size=1, steps=steps))
        assert off_by(samples.tokens, P_DATA) < 1.6


@pytest.mark.slow
def test_one_block_tends_to_the_distribution(key):
    once = sample(key, 100_000, BlockByBlock(block_size=3, steps=1))
    marginals = np.stack([P_DATA @ (SEQUENCES == v) for v in range(SYMBOLS)])
    product = np.prod([marginals[SEQUENCES[:, i], i] for i in range(LENGTH)], axis=0)
    assert off_by(once.tokens, product) < 1.6
    assert off_by(once.tokens, P_DATA) > 20
    fine = sample(key, 100_000, BlockByBlock(block_size=3, steps=500))
    # Pairs revealed in one step are left: three in 500 rows, each as far off as `once` at most.
    assert off_by(fine.tokens, P_DATA) < 1.6 + 3 / 500 * off_by(once.tokens, P_DATA)


@pytest.mark.parametrize("schedule", [LogLinear(eps=0.0), Cosine()])
def test_blocks_come_one_after_the_other(key, schedule):
    """The tokens are the number of masks in the row when they are drawn: fewer to the right."""

    def masks(inputs, *, key=None):
        assert inputs.clean is inputs.tokens
        count = (inputs.tokens == MASK).sum(-1)[:, None, None]
        hot = jnp.where(jnp.arange(VOCAB.size)[None, None] == count // 3, 0.0, -jnp.inf)
        return DenseLogits(jnp.broadcast_to(hot, (*inputs.tokens.shape, VOCAB.size)))

    tokens = np.zeros((1, 8), np.int32)
    sampler = BlockByBlock(block_size=2, steps=4)
    samples = sample(
        key,
        500,
        sampler,
        tokens=tokens,
        is_fixed=tokens > 0,
        schedule=schedule,
        denoise=masks,
    )
    found = np.asarray(samples.tokens)
    assert (np.diff(found, axis=1)[:, 1::2] <= 0).all()
    left = {0: {8, 7}, 1: {6, 5}, 2: {4, 3}, 3: {2, 1}}
    for block, counts in left.items():
        allowed = {count // 3 for count in counts}
        assert set(found[:, 2 * block : 2 * block + 2].ravel()) <= allowed
    assert int(samples.nfe) <= 4 * (sampler.steps + (schedule.eps > 0))


def test_each_block_runs_down_the_whole_grid(key):
    """The tokens are the steps at which the network is told to be: all alike, in every block."""
    steps, rows, vocab = 4, 500, Vocab(size=6, mask_id=5)

    def told(inputs, *, key=None):
        step = jnp.round(steps * (1 - inputs.t)).astype(jnp.int32)
        hot = jnp.where(jnp.arange(vocab.size)[None, None] == step[..., None], 0.0, -jnp.inf)
        return DenseLogits(jnp.broadcast_to(hot, (*inputs.tokens.shape, vocab.size)))

    @jax.jit
    def run(keys):
        return generate(
            keys,
            jnp.zeros((rows, 8), jnp.int32),
            jnp.zeros((rows, 8), bool),
            sampler=BlockByBlock(block_size=2, steps=steps),
            diffusion=Diffusion(
                process=Masked(schedule=LogLinear(eps=0.0)).with_vocab(vocab),
                parameterization=Subs().with_vocab(vocab),
                denoise=told,
            ),
        )

    found = np.asarray(run(by_row(key, jnp.arange(rows))).tokens).reshape(rows, 4, 2)
    for block in range(4):
        share = np.bincount(found[:, block].ravel(), minlength=steps + 1) / (2 * rows)
        error = np.sqrt(0.25 * 0.75 / (2 * rows))
        assert (np.abs(share - np.array([0.25] * 4 + [0.0])) < 4 * error).all()


@pytest.mark.parametrize("order", ["random", "left", "margin", "entropy"])
@pytest.mark.parametrize("block_size", [1, 3])
def test_one_by_one_in_parallel_blocks_has_the_distribution(key, order, block_size):
    sampler = ParallelBlocks(order=order, block_size=block_size)
    samples = sample(key, 50_000, sampler)
    assert off_by(samples.tokens, P_DATA) < 1.6
    assert int(samples.nfe) == LENGTH


def test_parallel_blocks_are_counted_from_the_first_position(key):
    """A token is the masks in the row in the call that writes it, and the times are those of the
    shares of masks in the blocks."""
    size, length = 4, 8
    vocab = Vocab(size=30, mask_id=29)

    def told(inputs, *, key=None):
        assert inputs.clean is inputs.tokens
        count = (inputs.tokens == vocab.mask_id).sum(-1, keepdims=True)
        value = count + 9 * jnp.round(2 * inputs.t).astype(jnp.int32)
        hot = jnp.arange(vocab.size)[None, None] == value[..., None]
        logits = jnp.where(hot, 0.0, -jnp.inf)
        return DenseLogits(jnp.broadcast_to(logits, (*inputs.tokens.shape, vocab.size)))

    is_fixed = np.arange(length)[None] < np.array([0, 2, 4])[:, None]
    samples = jax.jit(
        lambda keys: generate(
            keys,
            jnp.zeros((3, length), jnp.int32),
            jnp.asarray(is_fixed),
            sampler=ParallelBlocks(order="left", block_size=size, rule=Share(steps=2)),
            diffusion=Diffusion(
                process=Masked(schedule=LogLinear(eps=0.0)).with_vocab(vocab),
                parameterization=Subs().with_vocab(vocab),
                denoise=told,
            ),
        )
    )(by_row(key, jnp.arange(3)))
    full, half = 18, 9
    block = [4 + full, 4 + full, 2 + half, 2 + half]
    expected = [
        [8 + full, 8 + full, 6 + half, 6 + half, *block],
        [0, 0, 6 + full, 5 + half, *block],
        [0, 0, 0, 0, *block],
    ]
    np.testing.assert_array_equal(samples.tokens, expected)
    assert int(samples.nfe) == 4


def test_fixed_tokens_stay_and_condition_what_follows(key):
    tokens, is_fixed = np.array([[2, 0, 0]]), np.array([[True, False, False]])
    samples = sample(
        key, 50_000, BlockByBlock(block_size=1, steps=2), tokens=tokens, is_fixed=is_fixed
    )
    p = np.where(SEQUENCES[:, 0] == 2, P_DATA, 0)
    assert (np.asarray(samples.tokens)[:, 0] == 2).all()
    assert off_by(samples.tokens, p / p.sum()) < 1.6
    nothing = sample(
        key, 2, BlockByBlock(block_size=3), tokens=tokens, is_fixed=np.ones((1, 3), bool)
    )
    assert int(nothing.nfe) == 0


@pytest.mark.parametrize("kind", [BlockByBlock, ParallelBlocks])
def test_a_row_does_not_depend_on_the_rows_beside_it(key, kind):
    sampler = kind(block_size=3)
    both = np.asarray(sample(key, 40, sampler).tokens)
    np.testing.assert_array_equal(sample(key, 7, sampler).tokens, both[:7])


@pytest.mark.parametrize("wrong", [dict(block_size=0), dict(block_size=2, steps=0)])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        BlockByBlock(**wrong)
    with pytest.raises((ValueError, TypeError), match="block_size"):
        ParallelBlocks(block_size=wrong["block_size"] - 2)
    with pytest.raises(TypeError, match="block_size"):
        ParallelBlocks()


def test_what_it_cannot_do_is_said(key):
    sampler = BlockByBlock(block_size=2)
    for kind in (sampler, ParallelBlocks(block_size=2)):
        with pytest.raises(ValueError, match="block_size=2 does not divide the length of 3"):
            sample(key, 1, kind, denoise=network(1))
    subs = Subs().with_vocab(VOCAB)
    assert sampler.incompatibility(Masked(), subs) is None
    assert "a rate for each" in sampler.incompatibility(Masked(schedule=LearnedPolynomial()), subs)
