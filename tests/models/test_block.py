"""What must hold of the network of block diffusion, whatever its parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_networks import random_params

from mdlm.models.block import BlockDiT
from mdlm.models.dit import DiT
from mdlm.models.network import denoiser, shapes
from mdlm.types import NetInput

B, L, COLUMNS = 2, 12, 19
SIZES = dict(width=32, depth=2, heads=2, cond_dim=8, dtype="float32")
DIT = DiT(**SIZES)
sizes = pytest.mark.parametrize("block_size", [1, 4])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(network, condition, params, inputs):
    return denoiser(network, COLUMNS, params, condition=condition)(inputs).logits()


def logits(network, condition=None, **inputs):
    return _logits(network, condition, random_params(DIT), NetInput(**inputs))


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(3), (B, L), 0, COLUMNS)


@pytest.fixture
def clean():
    return jax.random.randint(jax.random.key(4), (B, L), 0, COLUMNS)


def five_times(t):
    return 5 * t


def block_of(block_size):
    return np.arange(L) // block_size


def reads(network, which, tokens, clean, **inputs):
    """`[i, j]`: whether the logits at i change with the token at j, one row per j."""
    rows = {"tokens": tokens[:1].repeat(L + 1, 0), "clean": clean[:1].repeat(L + 1, 0)}
    places = jnp.arange(L)
    rows[which] = rows[which].at[places, places].set((rows[which][0] + 1) % COLUMNS)
    inputs = {name: value.repeat(L + 1, 0) for name, value in inputs.items()}
    found = np.asarray(logits(network, **rows, **inputs))
    return (found[:L] != found[L]).any(-1).T


@sizes
def test_parameters_are_those_of_the_dit(block_size):
    assert shapes(BlockDiT(block_size=block_size, **SIZES), COLUMNS) == shapes(DIT, COLUMNS)


@sizes
def test_logits_depend_on_the_noised_block_and_the_clean_blocks_before(tokens, clean, block_size):
    network = BlockDiT(block_size=block_size, **SIZES)
    b = block_of(block_size)
    np.testing.assert_array_equal(reads(network, "tokens", tokens, clean), b[:, None] == b)
    np.testing.assert_array_equal(reads(network, "clean", tokens, clean), b[:, None] > b)


def test_padding_and_other_segments_are_not_seen(tokens, clean):
    network = BlockDiT(block_size=4, **SIZES)
    b = block_of(4)
    is_valid = np.array([True] * 10 + [False] * 2)
    segment = np.array([0] * 5 + [1] * 7)
    same = (segment[:, None] == segment) & is_valid[:, None] & is_valid
    given = dict(is_valid=jnp.asarray(is_valid)[None], segment_ids=jnp.asarray(segment)[None])
    for which, rule in (("tokens", b[:, None] == b), ("clean", b[:, None] > b)):
        seen = reads(network, which, tokens, clean, **given)
        np.testing.assert_array_equal(seen[is_valid], (rule & same)[is_valid])


def test_one_block_of_the_whole_row_is_the_dit(tokens, clean):
    whole = logits(BlockDiT(block_size=L, **SIZES), tokens=tokens, clean=clean)
    np.testing.assert_allclose(whole, logits(DIT, tokens=tokens), rtol=1e-5, atol=1e-5)


@sizes
@pytest.mark.parametrize("told", [False, True])
def test_one_pass_equals_a_loop_over_blocks(tokens, clean, block_size, told):
    """Each block asked about by itself: all that it is not to depend on is something else."""
    network = BlockDiT(block_size=block_size, **SIZES)
    condition = five_times if told else None
    blocks = L // block_size
    t = jax.random.uniform(jax.random.key(5), (B, blocks)).repeat(block_size, axis=1)
    at_once = logits(network, condition, tokens=tokens, clean=clean, t=t)
    asked, of = np.arange(blocks)[:, None, None], block_of(block_size)
    alone = logits(
        network,
        condition,
        tokens=jnp.where(asked == of, tokens, 0).reshape(-1, L),
        clean=jnp.where(asked > of, clean, 1).reshape(-1, L),
        t=jnp.where(asked == of, t, 0.3).reshape(-1, L),
    ).reshape(blocks, B, L, COLUMNS)
    for j in range(blocks):
        np.testing.assert_allclose(alone[j][:, of == j], at_once[:, of == j], rtol=1e-4, atol=1e-4)


def test_the_time_is_told_to_the_noised_half_alone(tokens, clean):
    """Later blocks read the clean half, which is to be the same at all times."""
    network = BlockDiT(block_size=4, **SIZES)
    t = jnp.full((B, L), 0.5)
    changed = t.at[:, :4].set(0.9)
    one, other = (
        logits(network, five_times, tokens=tokens, clean=clean, t=t) for t in (t, changed)
    )
    assert jnp.abs(one - other)[:, :4].max() > 1e-3
    np.testing.assert_allclose(one[:, 4:], other[:, 4:], rtol=1e-5, atol=1e-5)
    # One time for the row is the same time for all of its tokens.
    row = logits(network, five_times, tokens=tokens, clean=clean, t=t[:, :1])
    np.testing.assert_allclose(row, one, rtol=1e-5, atol=1e-5)


def test_positions_are_shared_by_the_halves(tokens, clean):
    network = BlockDiT(block_size=4, **SIZES)
    plain = logits(network, tokens=tokens, clean=clean)
    place = jnp.broadcast_to(jnp.arange(L), (B, L))
    given = logits(network, tokens=tokens, clean=clean, positions=place)
    np.testing.assert_array_equal(given, plain)
    moved = logits(network, tokens=tokens, clean=clean, positions=place + 7)
    np.testing.assert_allclose(moved, plain, rtol=1e-4, atol=1e-4)


def test_what_is_wrong_is_said(tokens):
    with pytest.raises(ValueError, match="reads the clean tokens too: clean=None"):
        logits(BlockDiT(block_size=4, **SIZES), tokens=tokens)
    with pytest.raises(ValueError, match="block_size=5 does not divide the length of 12"):
        logits(BlockDiT(block_size=5, **SIZES), tokens=tokens, clean=tokens)
    with pytest.raises(ValueError, match="block_size=0: must be at least 1"):
        BlockDiT(block_size=0, **SIZES)
