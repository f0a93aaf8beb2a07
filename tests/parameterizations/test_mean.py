"""The mean parameterization: which columns have mass, gradients, the public project's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.parameterizations.mean import Mean
from mdlm.types import Vocab

MASK, V, COLUMNS = 2, 6, 8
SUPPORT = {True: np.array([0, 1, 2, 3, 4, 5]), False: np.array([0, 1, 3, 4, 5])}


def mean(mask_has_mass):
    return Mean(mask_has_mass=mask_has_mass, mask_id=MASK, vocab_size=V)


@pytest.fixture
def output():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, COLUMNS)), jnp.float32)


@pytest.fixture
def z_t():
    return jnp.array([[2, 0, 2, 5], [2, 2, 2, 2], [0, 1, 3, 4]])


def test_vocabulary_sets_both_fields(output, z_t):
    vocab = Vocab(size=V, mask_id=MASK)
    assert Mean(mask_has_mass=True).with_vocab(vocab) == mean(True)
    with pytest.raises(ValueError, match=r"mask_id=3\): the vocabulary's is 2"):
        Mean(mask_id=3).with_vocab(vocab)
    with pytest.raises(ValueError, match=r"vocab_size=9\): the vocabulary's is 6"):
        Mean(vocab_size=9).with_vocab(vocab)
    with pytest.raises(ValueError, match="with_vocab"):
        Mean().log_p0(output, z_t)


@pytest.mark.parametrize("mask_has_mass", [False, True])
def test_every_position_is_the_softmax_over_the_support(output, z_t, mask_has_mass):
    support = SUPPORT[mask_has_mass]
    log_p0 = np.asarray(mean(mask_has_mass).log_p0(output, z_t), np.float64)
    logits = np.asarray(output, np.float64)[..., support]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_p0[..., support], expected, rtol=1e-5, atol=1e-6)
    others = np.setdiff1d(np.arange(COLUMNS), support)
    assert (log_p0[..., others] == -np.inf).all()


@pytest.mark.parametrize("mask_has_mass", [False, True])
def test_columns_outside_the_support_do_not_matter(output, z_t, mask_has_mass):
    others = np.setdiff1d(np.arange(COLUMNS), SUPPORT[mask_has_mass])
    expected = mean(mask_has_mass).log_p0(output, z_t)
    for value in (1e30, jnp.inf, -jnp.inf, jnp.nan):
        wild = output.at[..., others].set(value)
        np.testing.assert_array_equal(mean(mask_has_mass).log_p0(wild, z_t), expected)


@pytest.mark.parametrize("mask_has_mass", [False, True])
def test_one_token_is_the_column_of_all(output, z_t, mask_has_mass):
    log_p0 = mean(mask_has_mass).log_p0(output, z_t)
    for token in range(V):
        one = mean(mask_has_mass).log_p0_of(jnp.full_like(z_t, token), output, z_t)
        np.testing.assert_allclose(one, log_p0[..., token], rtol=1e-6)


def test_any_leading_shape_and_float32(output, z_t):
    whole = mean(True).log_p0(output, z_t)
    np.testing.assert_array_equal(mean(True).log_p0(output[1, 2], z_t[1, 2]), whole[1, 2])
    half = mean(True).log_p0(output.astype(jnp.bfloat16), z_t)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(jnp.exp(half).sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("mask_has_mass", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e30])
def test_gradients_are_finite(output, z_t, mask_has_mass, size):
    def loss(output):
        p_m = jnp.exp(mean(mask_has_mass).log_p0_of(jnp.full_like(z_t, MASK), output, z_t))
        log_p = mean(mask_has_mass).log_p0_of(jnp.full_like(z_t, 4), output, z_t)
        return (jnp.log1p(3 * p_m) - log_p).sum()

    slope = jax.grad(loss)(size * output)
    assert jnp.isfinite(slope).all() and jnp.abs(slope[..., 4]).max() > 0
    assert (slope[..., V:] == 0).all()
    assert (jnp.abs(slope[..., MASK]).max() > 0) == mask_has_mass


@pytest.mark.golden
@pytest.mark.parametrize("mask_has_mass", [False, True])
def test_golden_log_probabilities(golden, mask_has_mass):
    arrays = golden("mdlm_dit.npz")
    reference = arrays[f"d3pm_logprobs_notime_last_subsmasking{int(not mask_has_mass)}"]
    ours = np.asarray(
        Mean(mask_has_mass=mask_has_mass, mask_id=66, vocab_size=67).log_p0(
            jnp.asarray(arrays["logits_notime"]), jnp.asarray(arrays["x"], jnp.int32)
        )
    )
    # The public project writes about -1e6 for what has no mass.
    has_mass = np.isfinite(ours)
    assert has_mass[..., :66].all() and (has_mass[..., 66] == mask_has_mass).all()
    assert (reference[~has_mass] < -1e5).all()
    np.testing.assert_allclose(ours[has_mass], reference[has_mass], rtol=1e-6, atol=3e-5)
