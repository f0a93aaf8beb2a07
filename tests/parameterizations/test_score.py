"""Scores: what is a state, what is known, the scale, and which processes they fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mdlm.parameterizations.score import Score, log_expm1
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.schedules.closed_form import Geometric, LogLinear
from mdlm.types import Vocab

MASK, V, COLUMNS = 2, 6, 8
FIELDS = {"mask_id": MASK, "vocab_size": V}
ABSORBING, UNIFORM = Score(**FIELDS), Score(graph="uniform", **FIELDS)


class PerToken(LogLinear):
    per_token = True


@pytest.fixture
def output():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, COLUMNS)), jnp.float32)


@pytest.fixture
def z_t():
    return jnp.array([[2, 0, 2, 5], [2, 2, 2, 2], [0, 1, 3, 4]])


SIGMA = jnp.array([[0.01], [0.7], [5.0]])


def test_vocabulary_sets_both_fields(output, z_t):
    vocab = Vocab(size=V, mask_id=MASK)
    assert Score(graph="uniform").with_vocab(vocab) == UNIFORM
    with pytest.raises(ValueError, match=r"mask_id=3\): the vocabulary's is 2"):
        Score(mask_id=3).with_vocab(vocab)
    with pytest.raises(ValueError, match=r"vocab_size=9\): the vocabulary's is 6"):
        Score(vocab_size=9).with_vocab(vocab)
    with pytest.raises(ValueError, match="with_vocab"):
        Score().log_score(output, z_t, SIGMA)
    with pytest.raises((ValueError, TypeCheckError), match="ring"):
        Score(graph="ring")  # pyright: ignore[reportArgumentType]


def test_absorbing_scores_are_scaled(output, z_t):
    ours = np.asarray(ABSORBING.log_score(output, z_t, SIGMA))
    scale = np.log(np.expm1(np.asarray(SIGMA, np.float64))) + np.log(V - 1)
    expected = np.asarray(output, np.float64) - scale[..., None]
    is_own = np.arange(COLUMNS) == np.asarray(z_t)[..., None]
    inside = ~is_own & (np.arange(COLUMNS) < V)
    np.testing.assert_allclose(ours[inside], expected[inside], rtol=1e-5, atol=1e-5)
    assert (ours[is_own] == 0).all()
    assert (ours[..., V:] == -np.inf).all()


def test_zeros_say_that_all_tokens_are_alike(z_t):
    score = jnp.exp(ABSORBING.log_score(jnp.zeros((3, 4, COLUMNS)), z_t, SIGMA))
    total = score[1, 0, np.array([0, 1, 3, 4, 5])].sum()
    np.testing.assert_allclose(total, 1 / np.expm1(0.7), rtol=1e-5)


def test_uniform_scores_know_no_mask(output, z_t):
    z_t = jnp.where(z_t == MASK, 3, z_t)
    ours = np.asarray(UNIFORM.log_score(output, z_t, SIGMA))
    is_own = np.arange(COLUMNS) == np.asarray(z_t)[..., None]
    is_token = (np.arange(COLUMNS) < V) & (np.arange(COLUMNS) != MASK)
    np.testing.assert_array_equal(ours[~is_own & is_token], np.asarray(output)[~is_own & is_token])
    assert (ours[is_own] == 0).all()
    assert (ours[..., ~is_token] == -np.inf).all()


@pytest.mark.parametrize("score", [ABSORBING, UNIFORM])
def test_columns_that_are_no_state_do_not_matter(output, score):
    z_t = jnp.array([[0, 1, 3, 4]] * 3)
    is_state = np.arange(COLUMNS) < V
    if score is UNIFORM:
        is_state &= np.arange(COLUMNS) != MASK
    expected = score.log_score(output, z_t, SIGMA)
    for value in (1e30, jnp.inf, jnp.nan):
        wild = output.at[..., ~is_state].set(value)
        np.testing.assert_array_equal(score.log_score(wild, z_t, SIGMA), expected)
    slope = jax.grad(lambda o: jnp.exp(score.log_score(o, z_t, SIGMA)).sum())(output)
    assert jnp.isfinite(slope).all() and (slope[..., ~is_state] == 0).all()


def test_distribution_of_the_clean_token_is_the_score_s(output, z_t):
    log_p0 = np.asarray(ABSORBING.log_p0(output, z_t))
    np.testing.assert_array_equal(log_p0, Subs(**FIELDS).log_p0(output, z_t))
    score = np.exp(np.asarray(ABSORBING.log_score(output, z_t, SIGMA), np.float64))
    score[..., MASK] = 0
    is_masked = np.asarray(z_t) == MASK
    p = score / score.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_p0[is_masked]), p[is_masked], rtol=1e-4)
    with pytest.raises(ValueError, match="uniform"):
        UNIFORM.log_p0(output, z_t)


def test_log_expm1_at_both_ends():
    sigma = jnp.array([1e-6, 1e-3, 0.5, 20.0, 200.0])
    exact = np.asarray(sigma, np.float64)
    expected = exact + np.log(-np.expm1(-exact))
    np.testing.assert_allclose(log_expm1(sigma), expected, rtol=1e-6)


def test_refusals():
    absorbing, uniform = Masked(schedule=LogLinear()), Uniform(schedule=LogLinear())
    assert ABSORBING.incompatibility(absorbing) is None and UNIFORM.incompatibility(uniform) is None
    assert ABSORBING.incompatibility(Masked(schedule=Geometric())) is None
    assert 'needs parameterization=Score(graph="uniform")' in (
        ABSORBING.incompatibility(uniform) or ""
    )
    assert 'needs parameterization=Score(graph="absorbing")' in (
        UNIFORM.incompatibility(absorbing) or ""
    )
    assert "PerToken" in (ABSORBING.incompatibility(Masked(schedule=PerToken())) or "")
    assert "alpha = 0" in (ABSORBING.incompatibility(Masked(schedule=LogLinear(eps=0.0))) or "")
