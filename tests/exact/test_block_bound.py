"""Block diffusion against enumerated truth: entropies, likelihoods, redrawn masks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distribution import Distribution

from mdlm.diffusion import Diffusion
from mdlm.keys import stream
from mdlm.objectives.block import BlockNelbo, masked_within
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.times import IID
from mdlm.types import DenseLogits, NetInput


def blockwise(data, block_size):
    """The true p(x_i | noised own block, clean blocks before), each block asked by itself."""
    of = jnp.arange(data.length) // block_size

    def denoise(inputs, *, key=None):
        logits = jnp.zeros((*inputs.tokens.shape, data.symbols + 1))
        for j in range(data.length // block_size):
            seen = jnp.where((of == j)[None], inputs.tokens, data.mask_id)
            seen = jnp.where((of < j)[None], inputs.clean, seen)
            answer = data.denoise(NetInput(tokens=seen)).logits()
            logits = jnp.where((of == j)[None, :, None], answer, logits)
        return DenseLogits(logits)

    return denoise


def parts(data, schedule=None):
    return dict(
        process=Masked(schedule=schedule or LogLinear(eps=0.0), mask_id=data.mask_id),
        parameterization=Subs(mask_id=data.mask_id, vocab_size=data.mask_id + 1),
    )


THREE, FOUR = Distribution(), Distribution(length=4, symbols=2, seed=1)


@pytest.mark.parametrize(
    "data, objective, schedule",
    [
        (THREE, BlockNelbo(block_size=1), LogLinear(eps=0.0)),
        (THREE, BlockNelbo(block_size=3), LogLinear(eps=0.0)),
        (THREE, BlockNelbo(block_size=1, times=IID()), Cosine(eps=0.0)),
        (FOUR, BlockNelbo(block_size=2), LogLinear(eps=0.0)),
        (FOUR, BlockNelbo(block_size=2, t_min=0.01), Cosine(eps=0.0)),
    ],
    ids=["tokens", "row", "tokens, cosine, iid", "pairs", "pairs, cosine"],
)
def test_expected_bound_is_the_entropy(data, objective, schedule):
    """The whole objective, its own draws included, within four standard errors."""
    rows, repeats = 4096, 60
    denoise = blockwise(data, objective.block_size)

    @jax.jit
    def once(key):
        rank = jax.random.choice(
            stream(key, "data"), len(data.p), (rows,), p=jnp.asarray(data.p, jnp.float32)
        )
        batch = data.batch(np.zeros((rows, data.length)))
        batch = type(batch)(
            **{**vars(batch), "tokens": jnp.asarray(data.sequences, jnp.int32)[rank]}
        )
        terms = objective(
            stream(key, "loss"),
            batch,
            diffusion=Diffusion(denoise=denoise, **parts(data, schedule)),
        )
        # The mean information of the rows drawn takes the data's own spread out of the estimate.
        information = -jnp.log(jnp.asarray(data.p, jnp.float32))[rank].mean()
        return terms.bound.sum() / rows - information

    gap = np.array([once(key) for key in jax.random.split(jax.random.key(1), repeats)], np.float64)
    error = gap.std(ddof=1) / np.sqrt(repeats)
    assert error < 0.01
    # At t_min = 0.01 the reconstruction takes tokens that are masked together as independent.
    slack = 3 * float(schedule.one_minus_alpha(jnp.asarray(objective.t_min))) ** 2 * data.entropy
    assert -4 * error < gap.mean() < 4 * error + slack


@pytest.mark.parametrize("data", [THREE, FOUR], ids=["three", "four"])
def test_all_masked_one_token_to_a_block_is_next_token_likelihood(data, key):
    """Of each sequence, token by token, against the distribution's own conditionals in float64."""
    objective = BlockNelbo(block_size=1, low=1.0, high=1.0)
    terms = objective(
        key,
        data.batch(data.sequences),
        diffusion=Diffusion(denoise=blockwise(data, 1), **parts(data, LogLinear())),
    )
    expected = np.zeros(data.sequences.shape)
    for x, row in zip(data.sequences, expected, strict=True):
        for i in range(data.length):
            before, upto = (
                data.p[(data.sequences[:, :n] == x[:n]).all(-1)].sum() for n in (i, i + 1)
            )
            row[i] = -np.log(upto / before)
    np.testing.assert_allclose(terms.bound, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(terms.bound.sum(-1), -np.log(data.p), rtol=1e-4)
    again = objective(
        stream(key, "other"),
        data.batch(data.sequences),
        diffusion=Diffusion(denoise=blockwise(data, 1), **parts(data)),
    )
    np.testing.assert_array_equal(terms.bound, again.bound)  # nothing is drawn


@pytest.mark.parametrize("low, high", [(0.3, 0.8), (0.0, 0.5), (0.5, 1.0)])
def test_redrawn_masks_have_the_conditional_distribution(low, high, key):
    """P(masks) is that of independent masks given that their share lies in the interval."""
    rows, size, mask = 40_000, 4, 9
    t = low + (high - low) * 0.4
    x_0 = jnp.zeros((rows, size), jnp.int32)
    z_t, draws = jax.jit(
        lambda key: masked_within(
            lambda i: jax.random.uniform(jax.random.fold_in(key, i), x_0.shape),
            x_0,
            jnp.full(x_0.shape, t),
            Masked(schedule=LogLinear(eps=0.0), mask_id=mask),
            block_size=size,
            low=low,
            high=high,
            rounds=100,
        )
    )(key)
    assert 1 < int(draws) < 100
    pattern = (np.asarray(z_t) == mask) @ 2 ** np.arange(size)
    found = np.bincount(pattern, minlength=2**size) / rows
    k = np.array([bin(i).count("1") for i in range(2**size)])
    expected = np.where(
        (k >= math.ceil(low * size)) & (k <= math.floor(high * size)),
        t**k * (1 - t) ** (size - k),
        0,
    )
    expected /= expected.sum()
    error = np.sqrt(expected * (1 - expected) / rows)
    assert (np.abs(found - expected) <= 4.5 * error).all()
