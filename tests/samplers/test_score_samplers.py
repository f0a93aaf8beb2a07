"""Samplers of scores: weights, the last step, fixed tokens, settings, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.parameterizations.score import Score
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.loop import generate
from mdlm.samplers.score import Euler, Tweedie, clean_weights, tweedie_weights
from mdlm.schedules.closed_form import Geometric, LogLinear
from mdlm.types import DenseLogits

MASK, V = 2, 5
FIELDS = {"mask_id": MASK, "vocab_size": V}
SCHEDULE = LogLinear()
GRAPHS = {
    "absorbing": (Masked(schedule=SCHEDULE, mask_id=MASK), Score(**FIELDS)),
    "uniform": (Uniform(schedule=SCHEDULE, **FIELDS), Score(graph="uniform", **FIELDS)),
}
P_DATA = jnp.array([0.5, 0.3, 0.0, 0.15, 0.05])  # of a clean token, whatever the others


def true_score(process, z_t, t):
    """The log-score of independent tokens of distribution P_DATA, [b l v]."""
    alpha, noised = (f(t)[..., None] for f in (SCHEDULE.alpha, SCHEDULE.one_minus_alpha))
    if isinstance(process, Masked):
        p = jnp.where(jnp.arange(V)[None, None] == MASK, noised, alpha * P_DATA[None, None])
    else:
        is_token = jnp.arange(V)[None, None] != MASK
        p = alpha * P_DATA[None, None] + jnp.where(is_token, noised / (V - 1), 0.0)
    p = jnp.broadcast_to(p, (*z_t.shape, V))
    return jnp.log(p) - jnp.log(jnp.take_along_axis(p, z_t[..., None], -1))


def forward(process, s, t):
    """q(z_t | z_s), [z_s z_t], and q_s = sum of q(z_s | x) P_DATA(x); float64."""
    alpha_s, alpha_t = (float(SCHEDULE.alpha(jnp.float32(a))) for a in (s, t))
    noise = np.eye(V)[MASK] if isinstance(process, Masked) else (np.arange(V) != MASK) / (V - 1)
    p = np.asarray(P_DATA, np.float64)
    kept = alpha_t / alpha_s
    return (kept * np.eye(V) + (1 - kept) * noise), alpha_s * p + (1 - alpha_s) * noise


def normalised(weights, z_t):
    others, stay = (np.asarray(w, np.float64) for w in weights)
    assert (others >= 0).all() and (stay >= 0).all()
    np.put_along_axis(others, np.asarray(z_t)[..., None], stay[..., None], -1)
    return others / others.sum(-1, keepdims=True)


@pytest.mark.parametrize(("s", "t"), [(0.4, 0.6), (0.0, 0.3), (0.9, 1.0)])
@pytest.mark.parametrize("graph", GRAPHS)
def test_tweedie_with_the_true_score_is_bayes(graph, s, t):
    process, _ = GRAPHS[graph]
    states = [0, 1, 2, 3, 4] if graph == "absorbing" else [0, 1, 3, 4]
    z_t = jnp.array([states])
    step, q_s = forward(process, s, t)
    joint = q_s[:, None] * step
    bayes = (joint / np.maximum(joint.sum(0), 1e-300))[:, np.array(states)].T
    at, until = jnp.full((1, 1), t), jnp.full((1, 1), s)
    log_score = true_score(process, z_t, at)
    ours = normalised(tweedie_weights(log_score, z_t, at, until, process=process), z_t)
    np.testing.assert_allclose(ours[0], bayes, rtol=1e-3, atol=2e-5)
    if s == 0:
        clean = normalised(clean_weights(log_score, z_t, at, process=process), z_t)
        np.testing.assert_allclose(clean[0], bayes, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("graph", GRAPHS)
def test_euler_is_tweedie_in_short_steps(graph):
    process, _ = GRAPHS[graph]
    z_t = jnp.array([[0, 1, 3, 4, MASK if graph == "absorbing" else 0]])
    t, s = jnp.full((1, 1), 0.5), jnp.full((1, 1), 0.499)
    log_score = true_score(process, z_t, t)
    euler = Euler().weights(log_score, z_t, t, s, process=process)
    tweedie = Tweedie().weights(log_score, z_t, t, s, process=process)
    others = [np.asarray(w[0] / (w[0].sum(-1) + w[1])[..., None]) for w in (euler, tweedie)]
    assert others[0].max() > 1e-4
    np.testing.assert_allclose(*others, rtol=0.01, atol=1e-7)


@pytest.mark.parametrize("sampler", [Tweedie(), Euler()])
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_wrong_score_gives_no_negative_weight(graph, sampler):
    process, _ = GRAPHS[graph]
    z_t = jnp.array([[0, 1, 3, 4, MASK if graph == "absorbing" else 0]])
    t, s = jnp.full((1, 1), 0.9), jnp.full((1, 1), 0.2)
    log_score = true_score(process, z_t, t) + 5.0
    p = normalised(sampler.weights(log_score, z_t, t, s, process=process), z_t)
    assert np.isfinite(p).all()
    if graph == "absorbing":
        assert p[0, 4, MASK] == 0  # more than all would jump
        np.testing.assert_allclose(p[0, 4], P_DATA, rtol=1e-4)
    else:
        uneven = jnp.where(jnp.arange(V)[None, None] == z_t[..., None], 0.0, -9.0)
        others, stay = tweedie_weights(uneven, z_t, t, s, process=process)
        assert (others == 0).all() and (stay > 0).all()  # less of them than noise alone would give


def drawn(sampler, graph, fixed=False, rows=4000, schedule=SCHEDULE):
    process, score = GRAPHS[graph]
    process = type(process)(**{**vars(process), "schedule": schedule})

    def denoise(inputs, *, key=None):
        log_score = true_score(process, inputs.tokens, inputs.t)
        if graph == "uniform":
            return DenseLogits(log_score)
        return DenseLogits(jnp.broadcast_to(jnp.log(P_DATA), log_score.shape) + np.log(V - 1))

    tokens = jnp.ones((rows, 3), jnp.int32)
    is_fixed = jnp.broadcast_to(jnp.array([fixed, False, False]), (rows, 3))
    out = jax.jit(
        lambda keys: generate(
            keys,
            tokens,
            is_fixed,
            sampler=sampler,
            diffusion=Diffusion(process=process, parameterization=score, denoise=denoise),
        )
    )(by_row(jax.random.key(0), jnp.arange(rows)))
    return np.asarray(out.tokens), int(out.nfe)


@pytest.mark.parametrize("sampler", [Tweedie(steps=3), Euler(steps=30, grid="cosine")])
@pytest.mark.parametrize("graph", GRAPHS)
def test_samples_and_fixed_tokens(graph, sampler):
    tokens, nfe = drawn(sampler, graph, fixed=True)
    assert nfe == sampler.steps
    assert (tokens[:, 0] == 1).all()
    share = np.bincount(tokens[:, 1:].ravel(), minlength=V) / tokens[:, 1:].size
    assert share[MASK] == 0
    # 8000 draws: standard error 0.0056. Tweedie is exact for independent tokens, Euler near.
    np.testing.assert_allclose(share, P_DATA, atol=0.025)


def test_no_mask_is_left_by_a_schedule_that_is_not_clean_at_0():
    tokens, _ = drawn(Tweedie(steps=2), "absorbing", schedule=Geometric(sigma_min=0.5), rows=200)
    assert (tokens != MASK).all()


def test_temperature_zero_takes_the_likeliest():
    tokens, _ = drawn(Tweedie(steps=2, temperature=0.0), "absorbing", rows=64)
    assert (tokens == 0).all()


@pytest.mark.parametrize("sampler", [Tweedie, Euler])
@pytest.mark.parametrize("settings", [{"steps": 0}, {"grid": "square"}, {"top_k": -1}])
def test_bad_settings(sampler, settings):
    with pytest.raises((ValueError, TypeCheckError), match=next(iter(settings))):
        sampler(**settings)


def test_refusals():
    absorbing, uniform = Masked(), Uniform()
    scores = Score(), Score(graph="uniform")
    assert Tweedie(top_k=3).incompatibility(absorbing, scores[0]) is None
    assert Tweedie().incompatibility(uniform, scores[1]) is None
    assert "Score(graph=" in (Euler().incompatibility(uniform, scores[0]) or "")
    for settings in ({"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}):
        assert "temperature" in (Euler(**settings).incompatibility(uniform, scores[1]) or "")
