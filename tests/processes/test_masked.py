"""The absorbing process: what is masked, what is revealed, and that the two fit together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.keys import by_row
from mdlm.processes.masked import Masked
from mdlm.schedules.base import Schedule
from mdlm.schedules.change_of_variables import ChangeOfVariables
from mdlm.schedules.closed_form import Cosine, CosineSquared, Geometric, LinearSigma, LogLinear
from mdlm.schedules.md4 import Polynomial
from mdlm.types import Vocab

SCHEDULES = [
    LogLinear(),
    LogLinear(eps=0.0),
    Cosine(),
    CosineSquared(eps=0.0),
    Polynomial(power=0.5, eps=1e-4),
    Polynomial(power=3),
    LinearSigma(),
    Geometric(),
    ChangeOfVariables(base=LogLinear()),
]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)

MASK, V = 2, 6  # the mask among the tokens, not behind them
B, L = 8, 1000  # one shape for most tests, so that JAX compiles its operations once
P_0 = np.array([0.5, 0.2, 0.0, 0.0, 0.25, 0.05])
TOKENS = np.flatnonzero(P_0)


def clean(b=B, l=L):
    drawn = np.random.default_rng(0).choice(V, size=(b, l), p=P_0)
    return jnp.asarray(drawn, jnp.int32)


def times(value, b=B):
    return jnp.full((b, 1), value)


def log_p0(p=P_0, b=B, l=L):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.broadcast_to(np.log(p), (b, l, V)), jnp.float32)


def rows(key, b=B):
    return by_row(key, jnp.arange(b))


def assert_frequencies(seen, p):
    """Each frequency within 4.5 standard errors of `p` (counts that cannot occur: none)."""
    n, p = seen.sum(), np.asarray(p)
    assert (np.abs(seen - n * p) <= 4.5 * np.sqrt(n * p * (1 - p))).all(), (seen / n, p)


# Noising.


def test_vocabulary_sets_the_mask():
    vocab = Vocab(size=V, mask_id=MASK)
    assert Masked().with_vocab(vocab) == Masked(mask_id=MASK)
    assert Masked(schedule=Cosine(), mask_id=MASK).with_vocab(vocab).schedule == Cosine()
    with pytest.raises(ValueError, match=r"mask_id=3\): the vocabulary's is 2"):
        Masked(mask_id=3).with_vocab(vocab)
    with pytest.raises(ValueError, match="with_vocab"):
        Masked().is_masked(clean(1, 2))


def test_prior_is_all_mask(key):
    prior = Masked(mask_id=MASK).prior(rows(key, 3), 5)
    assert prior.shape == (3, 5) and prior.dtype == jnp.int32 and (prior == MASK).all()


@schedules
def test_corrupt_at_the_ends(key, schedule):
    process, x_0 = Masked(schedule=schedule, mask_id=MASK), clean()
    at_clean = jax.jit(process.corrupt)(rows(key), x_0, times(0.0))
    expected = 1 - float(schedule.alpha(jnp.zeros(())))
    assert_frequencies(count_masked(at_clean), [1 - expected, expected])
    at_noise = jax.jit(process.corrupt)(rows(key), x_0, times(1.0))
    expected = float(schedule.alpha(jnp.ones(())))
    assert_frequencies(count_masked(at_noise)[::-1], [1 - expected, expected])


def count_masked(z):
    masked = int((z == MASK).sum())
    return np.array([z.size - masked, masked])


@schedules
def test_corrupt_masks_at_the_schedules_rate(key, schedule):
    process, x_0 = Masked(schedule=schedule, mask_id=MASK), clean()
    t = jnp.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9])[:, None]
    z_t = jax.jit(process.corrupt)(rows(key), x_0, t)
    assert ((z_t == x_0) | (z_t == MASK)).all()
    for row, noised in zip(z_t, schedule.one_minus_alpha(t)[:, 0], strict=True):
        assert_frequencies(count_masked(row), [1 - noised, noised])


def test_corrupt_takes_one_time_per_token(key):
    t = jnp.tile(jnp.array([0.0, 1.0]), (B, L // 2))
    z_t = Masked(schedule=LogLinear(eps=0.0), mask_id=MASK).corrupt(rows(key), clean(), t)
    np.testing.assert_array_equal(z_t[:, ::2], clean()[:, ::2])
    assert (z_t[:, 1::2] == MASK).all()


def test_corrupt_leaves_what_may_not_change(key):
    process = Masked(schedule=LogLinear(eps=0.0), mask_id=MASK)
    may_change = jnp.arange(L)[None] % 3 == jnp.arange(B)[:, None] % 3
    z_t = jax.jit(process.corrupt)(rows(key), clean(), times(1.0), may_change)
    np.testing.assert_array_equal(z_t, jnp.where(may_change, MASK, clean()))


def test_the_rule_is_strict():
    process = Masked(schedule=LogLinear(eps=0.0), mask_id=MASK)
    u = jnp.array([[0.0, 0.29999998, 0.3, 0.30000004]])
    z_t = process.mask_where(u, jnp.zeros((1, 4), jnp.int32), times(0.3, 1))
    np.testing.assert_array_equal(z_t, [[MASK, MASK, 0, 0]])
    never = process.mask_where(u, jnp.zeros((1, 4), jnp.int32), times(0.0, 1))
    assert (never == 0).all()


def test_a_row_is_noised_by_its_own_key(key):
    process, t = Masked(mask_id=MASK), jnp.linspace(0.1, 0.9, 8)[:, None]
    whole = jax.jit(process.corrupt)(rows(key), clean(), t)
    part = jax.jit(process.corrupt)(by_row(key, jnp.arange(3, 6)), clean()[3:6], t[3:6])
    np.testing.assert_array_equal(part, whole[3:6])


def test_schedules_that_look_at_the_token_see_it(key):
    class Ordered(Schedule):
        """Token 0 is noised by t = 1/2, before the others begin."""

        def alpha(self, t, x_0=None):
            return jnp.where(x_0 == 0, jnp.clip(1 - 2 * t, 0, 1), jnp.clip(2 - 2 * t, 0, 1))

    process = Masked(schedule=Ordered(), mask_id=MASK)
    z_t = jax.jit(process.corrupt)(rows(key), clean(), times(0.5))
    np.testing.assert_array_equal(z_t == MASK, clean() == 0)


# Reversing.


@schedules
def test_reveal_probability_is_a_probability(schedule):
    process = Masked(schedule=schedule, mask_id=MASK)
    t = jnp.concatenate([jnp.geomspace(1e-7, 1, 60), jnp.array([0.0, 0.999999, 0.5])])
    shares = jnp.array([0.0, 1e-6, 0.3, 0.999, 0.9999999, 1.0])
    s = (shares[:, None] * t[None]).ravel()
    p = process.reveal_probability(jnp.tile(t, len(shares)), s)
    assert jnp.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()
    inside = t[t > 0]
    assert (process.reveal_probability(inside, inside) == 0).all()
    if schedule.alpha(jnp.zeros(())) == 1:
        assert (process.reveal_probability(t, jnp.zeros_like(t)) == 1).all()


@schedules
def test_reveal_probabilities_multiply_along_a_grid(schedule):
    """Staying masked from 1 to s happens step by step; float32 sums of small steps keep it."""
    process = Masked(schedule=schedule, mask_id=MASK)
    grid = jnp.linspace(1, 0.5, 4097)
    stay = jnp.log1p(-process.reveal_probability(grid[:-1], grid[1:])).sum()
    ends = jnp.log(schedule.one_minus_alpha(grid))
    np.testing.assert_allclose(stay, ends[-1] - ends[0], rtol=1e-4)


def test_reveal_probability_differentiates():
    slope = jax.vmap(jax.grad(Masked(mask_id=MASK).reveal_probability, argnums=(0, 1)))
    for part in slope(jnp.array([0.5, 0.5, 0.0]), jnp.array([0.5, 0.0, 0.0])):
        assert jnp.isfinite(part).all()


def test_reverse_copies_what_is_not_masked(key):
    z_t = jnp.where(jnp.arange(L)[None] % 2 == 0, clean(), MASK)
    for s in (0.0, 0.3, 0.7):
        z_s = Masked(mask_id=MASK).reverse(rows(key), log_p0(), z_t, times(0.7), times(s))
        np.testing.assert_array_equal(z_s[:, ::2], z_t[:, ::2])


def test_reverse_to_zero_reveals_everything(key):
    process = Masked(mask_id=MASK)
    z_t = process.prior(rows(key), L)
    z_0 = jax.jit(process.reverse)(rows(key), log_p0(), z_t, times(1.0), times(0.0))
    assert np.isin(z_0, TOKENS).all()


def test_reverse_without_a_step_reveals_nothing(key):
    process = Masked(mask_id=MASK)
    z_t = process.prior(rows(key), L)
    z_s = jax.jit(process.reverse)(rows(key), log_p0(), z_t, times(0.4), times(0.4))
    assert (z_s == MASK).all()


def test_reverse_takes_one_time_per_token(key):
    process = Masked(mask_id=MASK)
    s = jnp.tile(jnp.array([0.0, 0.6]), (B, L // 2))
    z_s = jax.jit(process.reverse)(
        rows(key), log_p0(), process.prior(rows(key), L), jnp.full((B, L), 0.6), s
    )
    assert (z_s[:, ::2] != MASK).all() and (z_s[:, 1::2] == MASK).all()


def test_mass_on_the_mask_is_never_drawn(key):
    """x_0 is never the mask, so such mass goes to the tokens in proportion."""
    process, p = Masked(mask_id=MASK), np.array([0.1, 0.1, 0.6, 0.0, 0.2, 0.0])
    z_t = process.prior(rows(key), L)
    z_0 = jax.jit(process.reverse)(rows(key), log_p0(p), z_t, times(0.9), times(0.0))
    assert_frequencies(np.bincount(np.ravel(z_0), minlength=V), [0.25, 0.25, 0, 0, 0.5, 0])
    distribution = jax.jit(process.reverse_probabilities)(log_p0(p), z_t, times(0.9), times(0.45))
    np.testing.assert_allclose(distribution[0, 0], [0.125, 0.125, 0.5, 0, 0.25, 0], rtol=1e-6)


@schedules
def test_reverse_draws_from_its_probabilities(key, schedule):
    process = Masked(schedule=schedule, mask_id=MASK)
    z_t = process.prior(rows(key), L)
    t, s = times(0.8), times(0.55)
    z_s = jax.jit(process.reverse)(rows(key), log_p0(), z_t, t, s)
    distribution = jax.jit(process.reverse_probabilities)(log_p0(), z_t, t, s)
    np.testing.assert_allclose(distribution.sum(-1), 1, rtol=1e-6)
    assert_frequencies(
        np.bincount(np.ravel(z_s), minlength=V), np.asarray(distribution[0, 0], np.float64)
    )


def test_reverse_probabilities_of_a_clean_token_are_certain(key):
    distribution = Masked(mask_id=MASK).reverse_probabilities(
        log_p0(), clean(), times(0.8), times(0.1)
    )
    np.testing.assert_array_equal(distribution, jax.nn.one_hot(clean(), V))


@schedules
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.6), (0.7, 0.65), (0.3, 0.05)])
def test_reverse_after_corrupt_is_corrupt(key, schedule, t, s):
    """z_s from q(z_t | x_0) and the exact posterior follows q(z_s | x_0), token by token."""
    process, x_0 = Masked(schedule=schedule, mask_id=MASK), clean()
    known = jnp.where(jax.nn.one_hot(x_0, V) == 1, 0.0, -jnp.inf)
    there, back = (rows(jax.random.fold_in(key, i)) for i in range(2))
    z_t = jax.jit(process.corrupt)(there, x_0, times(t))
    z_s = jax.jit(process.reverse)(back, known, z_t, times(t), times(s))
    assert ((z_s == x_0) | (z_s == MASK)).all()
    noised = float(schedule.one_minus_alpha(jnp.float32(s)))
    for token in TOKENS:
        assert_frequencies(count_masked(z_s[x_0 == token]), [1 - noised, noised])


def test_reverse_after_corrupt_of_an_unknown_token_keeps_the_marginals(key):
    process, (t, s) = Masked(schedule=Cosine(), mask_id=MASK), (0.8, 0.4)
    there, back = (rows(jax.random.fold_in(key, i)) for i in range(2))
    z_t = jax.jit(process.corrupt)(there, clean(), times(t))
    z_s = jax.jit(process.reverse)(back, log_p0(), z_t, times(t), times(s))
    alpha = float(Cosine().alpha(jnp.float32(s)))
    distribution = alpha * P_0
    distribution[MASK] = 1 - alpha
    assert_frequencies(np.bincount(np.ravel(z_s), minlength=V), distribution)


def test_a_row_is_reversed_by_its_own_key(key):
    process, s = Masked(mask_id=MASK), jnp.linspace(0.1, 0.8, 8)[:, None]
    z_t = jnp.full((B, L), MASK)
    whole = jax.jit(process.reverse)(rows(key), log_p0(), z_t, times(0.9), s)
    part = jax.jit(process.reverse)(
        by_row(key, jnp.arange(3, 6)), log_p0(b=3), z_t[3:6], times(0.9, 3), s[3:6]
    )
    np.testing.assert_array_equal(part, whole[3:6])
    assert (whole[0] != whole[1]).any()


def test_positions_draw_independently(key):
    """Neighbours agree as often as independent draws of P_0 do."""
    process = Masked(mask_id=MASK)
    z_t = jnp.full((B, L), MASK)
    z_0 = jax.jit(process.reverse)(rows(key), log_p0(), z_t, times(1.0), times(0.0))
    agree = int((z_0[:, ::2] == z_0[:, 1::2]).sum())
    p = (P_0**2).sum()
    assert_frequencies(np.array([agree, B * L // 2 - agree]), [p, 1 - p])
