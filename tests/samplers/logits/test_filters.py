"""Temperature, top-k and top-p."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.samplers.logits.filters import filter_log_p, keep_top_k, keep_top_p, restrict, temper

P = np.array([[0.5, 0.2, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.2, 0.5]])
LOG_P = jnp.log(jnp.asarray(P, jnp.float32))


def kept(log_p):
    return np.isfinite(np.asarray(log_p))


REACH = [(0.01, 1), (0.49, 1), (0.51, 2), (0.69, 2), (0.71, 3), (0.96, 5), (1.0, 5)]
BELOW = [(0.01, 1), (0.49, 1), (0.51, 1), (0.69, 1), (0.71, 2), (0.96, 4), (1.0, 5)]


@pytest.mark.parametrize(
    "rule, p, count", [("reach", *case) for case in REACH] + [("below", *case) for case in BELOW]
)
def test_the_token_that_crosses_is_kept_or_not(rule, p, count):
    result = keep_top_p(LOG_P, p, rule)
    is_kept = kept(result)
    assert (is_kept[0] == (np.arange(5) < count)).all()
    assert (is_kept[1] == is_kept[0][::-1]).all()
    np.testing.assert_allclose(np.exp(result[0, :count]), P[0, :count] / P[0, :count].sum(), 1e-5)


@pytest.mark.parametrize("rule", ["reach", "below"])
def test_top_p_is_the_sorted_definition_on_random_distributions(rule):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 1000)).astype(np.float32) * 4
    log_p = jax.nn.log_softmax(jnp.asarray(logits))
    mass = np.asarray(jax.nn.softmax(log_p), np.float64)
    order = np.argsort(-mass, axis=-1)
    p_sorted = np.take_along_axis(mass, order, -1)
    cumulative = np.cumsum(p_sorted, -1)
    for p in (0.05, 0.5, 0.9, 0.99):
        # No tie and no near miss here.
        is_in = cumulative - p_sorted < p if rule == "reach" else cumulative <= p
        is_in[:, 0] = True
        expected = np.zeros_like(is_in)
        np.put_along_axis(expected, order, is_in, -1)
        result = keep_top_p(log_p, p, rule)
        assert (kept(result) == expected).all()
        np.testing.assert_allclose(np.exp(np.asarray(result)).sum(-1), 1, rtol=1e-5)


def test_tokens_of_equal_probability_stay_or_go_together():
    log_p = jnp.log(jnp.array([[0.3, 0.2, 0.3, 0.2]]))
    for p, rule, count in (
        (0.2, "reach", 2),
        (0.7, "reach", 4),
        (0.2, "below", 2),
        (0.7, "below", 2),
        (0.9, "below", 2),
    ):
        assert kept(keep_top_p(log_p, p, rule)).sum() == count


@pytest.mark.parametrize("k, count", [(0, 5), (1, 1), (3, 3), (5, 5), (9, 5)])
def test_top_k(k, count):
    result = keep_top_k(LOG_P, k)
    assert (kept(result).sum(-1) == count).all()
    expected = np.where(np.arange(5) < count, P[0], 0)
    np.testing.assert_allclose(np.exp(np.asarray(result[0])), expected / expected.sum(), rtol=1e-5)


def test_temperature():
    for temperature in (0.5, 1.0, 2.0):
        expected = P ** (1 / temperature)
        expected /= expected.sum(-1, keepdims=True)
        np.testing.assert_allclose(np.exp(temper(LOG_P, temperature)), expected, rtol=1e-5)
    assert (np.exp(temper(LOG_P, 0.0)) == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).all()


def test_each_row_has_its_own_temperature():
    temperatures = (0.0, 1e-40, 1e-30, 0.01, 0.5, 1.0, 2.0)
    log_p = jax.nn.log_softmax(LOG_P[:1].at[:, 4].set(-jnp.inf))
    rows = jnp.repeat(log_p, len(temperatures), axis=0)
    result = temper(rows, jnp.array(temperatures)[:, None])
    for row, temperature in zip(np.exp(result), temperatures, strict=True):
        if temperature < 0.01:
            assert (row == [1, 0, 0, 0, 0]).all()
        else:
            np.testing.assert_allclose(row, np.exp(temper(log_p, temperature))[0], 1e-5)


def test_what_is_left_by_bans_is_renormalised():
    rows = jnp.concatenate([LOG_P, jnp.log(jnp.eye(5)[1:2])])
    result = np.exp(restrict(rows, (1, 3), mask_id=2, size=4))
    # Left are the tokens 0 and 4, of which 4 is no token of this vocabulary.
    assert (result == [1, 0, 0, 0, 0]).all()
    result = np.exp(restrict(rows, (1,), mask_id=2, size=5))
    for row, p in zip(result, [*P, np.ones(5)], strict=True):  # the last is certain of token 1
        expected = np.where([1, 0, 0, 1, 1], p, 0)
        np.testing.assert_allclose(row, expected / expected.sum(), rtol=1e-5)


def test_the_order_is_temperature_then_top_k_then_top_p():
    # At temperature 0.5 probabilities are proportional to (100, 16, 9, 4, 1); of the two likeliest
    # tokens the first holds 100/116 = 0.862, so top_p = 0.87 keeps both and 0.85 one.
    for top_p, count in ((0.87, 2), (0.85, 1)):
        result = filter_log_p(LOG_P, temperature=0.5, top_k=2, top_p=top_p)
        assert (kept(result).sum(-1) == count).all()
    # Top-p before top-k would need 3 tokens for 0.87 at this temperature and keep 2; top-p before
    # temperature would find 0.85 in 3 tokens and keep 2.


def test_tokens_without_mass_stay_without():
    certain = jnp.asarray([[-jnp.inf, 0.0, -jnp.inf]])
    result = filter_log_p(certain, temperature=0.7, top_k=2, top_p=0.9)
    assert (np.asarray(result) == np.asarray(certain)).all()


@pytest.mark.golden
def test_kept_tokens_are_those_of_the_reference(golden):
    data = golden("md4_samplers.npz")
    logits = data["logits"].reshape(-1, data["logits"].shape[-1])
    log_p = jax.nn.log_softmax(jnp.asarray(logits))
    for name in data.files:
        rule, _, value = name.partition("/")
        expected = data[name]
        if rule == "topk_mask":
            result = keep_top_k(log_p, int(value))
        elif rule == "topp_mask":
            result = keep_top_p(log_p, float(value))
        else:
            continue
        result = kept(result).reshape(expected.shape)
        if value == "1.0":  # rounding decides the reference's tail: it may drop, never add
            assert (result >= expected).all() and (result.sum() - expected.sum()) <= 24
        else:
            assert (result == expected).all(), name
