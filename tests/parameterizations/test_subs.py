"""SUBS: what has no mass, what is certain, gradients, and the public project's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.parameterizations.subs import Subs
from mdlm.types import Vocab

MASK, V, COLUMNS = 2, 6, 8
SUBS = Subs(mask_id=MASK, vocab_size=V)
TOKENS = np.array([0, 1, 3, 4, 5])


@pytest.fixture
def output():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, COLUMNS)), jnp.float32)


@pytest.fixture
def z_t():
    return jnp.array([[2, 0, 2, 5], [2, 2, 2, 2], [0, 1, 3, 4]])


def test_vocabulary_sets_both_fields():
    vocab = Vocab(size=V, mask_id=MASK)
    assert Subs().with_vocab(vocab) == SUBS
    with pytest.raises(ValueError, match=r"mask_id=3\): the vocabulary's is 2"):
        Subs(mask_id=3).with_vocab(vocab)
    with pytest.raises(ValueError, match=r"vocab_size=9\): the vocabulary's is 6"):
        Subs(vocab_size=9).with_vocab(vocab)


def test_without_a_vocabulary_it_is_refused(output, z_t):
    with pytest.raises(ValueError, match="with_vocab"):
        Subs().log_p0(output, z_t)


def test_masked_positions_are_the_softmax_over_real_tokens(output, z_t):
    log_p0 = np.asarray(SUBS.log_p0(output, z_t), np.float64)
    is_masked = np.asarray(z_t) == MASK
    logits = np.asarray(output, np.float64)[..., TOKENS]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_p0[..., TOKENS][is_masked], expected[is_masked], rtol=1e-5)
    others = np.setdiff1d(np.arange(COLUMNS), TOKENS)
    assert (log_p0[..., others] == -np.inf).all()


def test_clean_positions_keep_their_token(output, z_t):
    log_p0 = SUBS.log_p0(output, z_t)
    p = np.asarray(jnp.exp(log_p0))
    is_clean = np.asarray(z_t) != MASK
    np.testing.assert_array_equal(p[is_clean], jax.nn.one_hot(z_t, COLUMNS)[is_clean])
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)


def test_forbidden_columns_do_not_matter(output, z_t):
    others = np.setdiff1d(np.arange(COLUMNS), TOKENS)
    for value in (1e30, jnp.inf, -jnp.inf, jnp.nan):
        wild = output.at[..., others].set(value)
        np.testing.assert_array_equal(SUBS.log_p0(wild, z_t), SUBS.log_p0(output, z_t))


def test_any_leading_shape(output, z_t):
    whole = SUBS.log_p0(output, z_t)
    flat = SUBS.log_p0(output.reshape(12, COLUMNS), z_t.reshape(12))
    np.testing.assert_array_equal(flat.reshape(whole.shape), whole)
    np.testing.assert_array_equal(SUBS.log_p0(output[1, 2], z_t[1, 2]), whole[1, 2])
    np.testing.assert_array_equal(SUBS.log_p0(output, z_t, jnp.zeros((3, 1))), whole)


def test_log_probabilities_are_float32(output, z_t):
    half = SUBS.log_p0(output.astype(jnp.bfloat16), z_t)
    assert half.dtype == jnp.float32
    total = jnp.exp(half).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_gradients_are_finite(output, z_t, size):
    target = jnp.where(z_t == MASK, 4, z_t)

    def loss(output):
        log_p0 = SUBS.log_p0(output, z_t)
        return -jnp.take_along_axis(log_p0, target[..., None], -1).sum()

    slope = jax.grad(loss)(size * output)
    assert jnp.isfinite(slope).all()
    others = np.setdiff1d(np.arange(COLUMNS), TOKENS)
    assert (slope[..., others] == 0).all()
    assert (slope[z_t != MASK] == 0).all()


def test_gradient_is_the_softmaxs(output, z_t):
    nll = lambda output: -SUBS.log_p0(output, z_t)[..., 4].sum(where=z_t == MASK)
    p = jax.nn.softmax(output[..., TOKENS], -1)
    expected = p - jnp.asarray(TOKENS == 4, jnp.float32)[None, None]
    slope = jax.grad(nll)(output)[..., TOKENS]
    np.testing.assert_allclose(slope[z_t == MASK], expected[z_t == MASK], rtol=1e-5, atol=1e-7)


@pytest.mark.golden
@pytest.mark.parametrize("network", ["time", "notime"])
def test_golden_log_probabilities_mask_last(golden, network):
    arrays = golden("mdlm_dit.npz")
    assert_golden(
        arrays[f"logits_{network}"], arrays["x"], arrays[f"subs_logprobs_{network}_last"], 66
    )


@pytest.mark.golden
@pytest.mark.parametrize("network", ["time", "notime"])
@pytest.mark.parametrize(("place", "mask_id"), [("last", 66), ("mid", 5)])
def test_golden_probabilities(golden, network, place, mask_id):
    arrays = golden("mdlm_samplers.npz")
    case = f"subs_{network}_{place}__"
    z_t = arrays["x" if place == "last" else "x_mid"]
    with np.errstate(divide="ignore"):
        reference = np.log(arrays[case + "ddpm_cache_p_x0"])
    assert (np.isneginf(reference).sum(-1) == np.where(z_t == mask_id, 1, 66)).all()
    assert_golden(arrays[case + "logits"], z_t, reference, mask_id)


def assert_golden(logits, z_t, reference, mask_id):
    subs = Subs(mask_id=mask_id, vocab_size=67)
    ours = np.asarray(subs.log_p0(jnp.asarray(logits), jnp.asarray(z_t, jnp.int32)))
    # The public project writes -1e6 for what has no mass.
    has_mass = np.isfinite(ours)
    assert has_mass.any() and (reference[~has_mass] < -1e5).all()
    np.testing.assert_allclose(ours[has_mass], reference[has_mass], rtol=1e-6, atol=3e-5)
