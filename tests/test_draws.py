"""Categorical draws: the distribution, its tail in float32, and what must never be drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.draws import TILE, _pick, categorical
from mdlm.keys import by_row

pytestmark = pytest.mark.optimized
draw = jax.jit(categorical)


CHUNK = 512


@jax.jit
def tally(key, logits, starts):
    rows = jnp.broadcast_to(logits, (CHUNK, len(logits)))

    def add(total, start):
        return total.at[categorical(by_row(key, start + jnp.arange(CHUNK)), rows)].add(1), None

    return jax.lax.scan(add, jnp.zeros(len(logits), jnp.int32), starts)[0]


def counts(key, logits, draws):
    """How often each token comes in about `draws` draws from one row of logits."""
    starts = jnp.arange(-(-draws // CHUNK)) * CHUNK
    return np.asarray(tally(key, jnp.asarray(logits, jnp.float32), starts))


def assert_distribution(seen, p):
    """Chi-square within four standard deviations of its mean, over cells of enough weight."""
    p = np.asarray(p, np.float64) / np.sum(p)
    expected = p * seen.sum()
    assert expected[p > 0].min() > 5
    statistic = ((seen - expected)[p > 0] ** 2 / expected[p > 0]).sum()
    freedom = (p > 0).sum() - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom) + 4
    assert (seen[p == 0] == 0).all()


@pytest.mark.parametrize("v", [5, TILE, 3 * TILE - 7])
def test_distribution(key, v):
    logits = 0.5 * np.random.default_rng(v).normal(size=v)
    assert_distribution(counts(key, logits, 50_000), np.exp(logits))


def test_distribution_with_forbidden_tokens_and_any_offset(key):
    logits = 0.5 * np.random.default_rng(0).normal(size=300)
    logits[::3] = -np.inf
    logits[256:] = -np.inf
    assert_distribution(counts(key, logits + 500.0, 50_000), np.exp(logits))


@pytest.mark.parametrize("draws", [2**18, pytest.param(2**21, marks=pytest.mark.slow)])
def test_rare_tokens_come_at_their_rate(key, draws):
    """32768 tokens of probability 2^-22 each; float32 Gumbel noise draws 18 % too few of them."""
    rare = 32768
    logits = np.full(rare + 1, -22 * np.log(2))
    logits[7] = np.log1p(-rare * 2.0**-22)
    seen = counts(key, logits, draws)
    p = rare * 2.0**-22
    total = seen.sum() - seen[7]
    error = np.sqrt(seen.sum() * p * (1 - p))
    assert abs(total - seen.sum() * p) < 4 * error
    # and they come evenly: both halves of the vocabulary the same
    halves = seen[8 : rare // 2].sum(), seen[rare // 2 + 8 :].sum()
    assert abs(halves[0] - halves[1]) < 4 * np.sqrt(sum(halves))


def test_a_rare_token_alone_in_its_block(key):
    logits = np.full(2 * TILE, -np.inf)
    logits[0], logits[-1] = 0.0, np.log(2.0**-9)
    seen = counts(key, logits, 2**18)
    expected = 2**18 / (1 + 2**9)
    assert abs(seen[-1] - expected) < 4 * np.sqrt(expected)
    assert seen[0] + seen[-1] == seen.sum()


def test_forbidden_tokens_are_never_drawn(key):
    """Random sets of allowed tokens over a vocabulary where sums round, and a wide range."""
    n, v = 2048, 5000
    rng = np.random.default_rng(1)
    is_allowed = rng.random((n, v)) < 0.3
    is_allowed[:, 17] = True
    logits = jnp.asarray(np.where(is_allowed, 6 * rng.normal(size=(n, v)), -np.inf), jnp.float32)
    for i in range(10):
        tokens = np.asarray(draw(by_row(jax.random.fold_in(key, i), jnp.arange(n)), logits))
        assert is_allowed[np.arange(n), tokens].all()


def test_empty_entries_are_never_picked_at_the_edges_of_their_neighbours():
    """Uniforms that fall exactly on a cumulative mass, where rounding decides, and 0 and nearly 1.

    XLA's cumulative sum is not monotone, so an empty entry's may exceed the one before it.
    """
    rng = np.random.default_rng(3)
    mass = jnp.asarray(rng.exponential(size=(4000, 1000)) * (rng.random((4000, 1000)) < 0.5))
    mass = mass.astype(jnp.float32).at[:, 0].set(0.0).at[:, -1].set(0.0)
    cumulative = jnp.cumsum(mass, -1)
    at = jnp.asarray(rng.integers(1000, size=4000))
    edge = jnp.take_along_axis(cumulative, at[:, None], -1)[:, 0] / cumulative[:, -1]
    for uniform in (edge, 0 * edge, 0 * edge + np.float32(1 - 2.0**-24)):
        picked = _pick(uniform, mass)
        assert (jnp.take_along_axis(mass, picked[:, None], -1) > 0).all()


@pytest.mark.parametrize("v", [1, 2, TILE + 1, 1000])
def test_the_only_token_is_drawn(key, v):
    for at in {0, v // 2, v - 1}:
        logits = jnp.full((64, v), -jnp.inf).at[:, at].set(-30.0)
        assert (draw(by_row(key, jnp.arange(64)), logits) == at).all()


def test_rows_without_any_token_give_zero(key):
    logits = jnp.full((3, 300), -jnp.inf).at[1, 299].set(0.0)
    np.testing.assert_array_equal(draw(by_row(key, jnp.arange(3)), logits), [0, 299, 0])


@pytest.mark.parametrize("v", [5, 300])
def test_a_row_draws_by_its_own_key_alone(key, v):
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(64, v)), jnp.float32)
    rows = jnp.arange(64)
    whole = draw(by_row(key, rows), logits)
    np.testing.assert_array_equal(draw(by_row(key, rows[::-1]), logits[::-1]), whole[::-1])
    np.testing.assert_array_equal(draw(by_row(key, rows[5:9]), logits[5:9]), whole[5:9])
    others = logits.at[:32].set(0.0)
    np.testing.assert_array_equal(draw(by_row(key, rows), others)[32:], whole[32:])
    assert (draw(by_row(jax.random.fold_in(key, 1), rows), logits) != whole).any()


def test_rows_with_one_key_draw_alike_and_others_independently(key):
    logits = jnp.zeros((2000, 2))
    tokens = np.asarray(draw(by_row(key, jnp.arange(2000) // 2), logits)).reshape(-1, 2)
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])
    assert abs(tokens[:-1, 0] @ tokens[1:, 0] - 999 / 4) < 4 * np.sqrt(999 * 3 / 16 + 999 / 8)


def test_half_precision_logits_are_drawn_in_float32(key):
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(2000, 1000)), jnp.bfloat16)
    half = draw(by_row(key, jnp.arange(2000)), logits)
    full = draw(by_row(key, jnp.arange(2000)), logits.astype(jnp.float32))
    np.testing.assert_array_equal(half, full)
