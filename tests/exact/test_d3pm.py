"""The D3PM bound against the divergences of its chain, by enumeration, with mass on the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distribution import SCHEDULES, Distribution

from mdlm.diffusion import Diffusion
from mdlm.objectives.base import score_masked
from mdlm.objectives.d3pm import D3PM, score_step
from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import DenseLogits, NetInput

DATA = Distribution()
MASK, STATES = DATA.mask_id, DATA.symbols + 1
X = np.repeat(DATA.sequences, len(DATA.hidings), axis=0)
HIDDEN = np.tile(DATA.hidings, (len(DATA.sequences), 1))
Z = np.where(HIDDEN, MASK, X)


def denoise(inputs, *, key=None):
    """Some network: near the true posterior, and with mass on the mask."""
    truth = DATA.denoise(inputs).logits()
    here = jnp.arange(DATA.length)[None, :, None] + inputs.tokens.sum(-1)[:, None, None]
    truth = jnp.maximum(truth, -8.0).at[..., MASK].set(-2.0)
    return DenseLogits(truth / 2 + 0.7 * jnp.sin(here + jnp.arange(STATES)[None, None]))


def transition(kept: float) -> np.ndarray:
    """q(next | state) of absorbing noise, [state next]."""
    matrix = kept * np.eye(STATES)
    matrix[:, MASK] += 1 - kept
    return matrix


def divergences(schedule, s: float, t: float) -> np.ndarray:
    """KL of the true step from the model's by token, from the chain's matrices, float64."""
    alpha_s, alpha_t = (1 - float(schedule.one_minus_alpha(jnp.float32(a))) for a in (s, t))
    mean = Mean(mask_has_mass=True, mask_id=MASK, vocab_size=STATES)
    z = jnp.asarray(Z, jnp.int32)
    logits = denoise(NetInput(tokens=z)).logits()
    p = np.exp(np.asarray(mean.log_p0(logits, z), np.float64))
    arrive = transition(alpha_t / alpha_s)[:, Z]  # [z_s n l], q(z_t | z_s)

    def step(distribution):
        joint = np.moveaxis(arrive, 0, -1) * (distribution @ transition(alpha_s))
        total = joint.sum(-1, keepdims=True)  # 0 at visible tokens where alpha_t = 0
        return joint / np.where(total > 0, total, 1.0)

    true, model = step(np.eye(STATES)[X]), step(p)
    happens = true > 0
    ratio = np.where(happens, true, 1.0) / np.where(happens, model, 1.0)
    return (true * np.log(ratio)).sum(-1)


def formula(schedule, s: float, t: float, scale: float = 1.0, mask_has_mass: bool = True):
    rows = jnp.ones((len(X), 1))
    return score_step(
        DATA.batch(X),
        z_t=jnp.asarray(Z, jnp.int32),
        s=rows * s,
        t=rows * t,
        scale=scale,
        diffusion=Diffusion(
            process=Masked(schedule=schedule, mask_id=MASK),
            parameterization=Mean(mask_has_mass=mask_has_mass, mask_id=MASK, vocab_size=STATES),
            denoise=denoise,
        ),
    )


@pytest.mark.parametrize("name", ["log-linear, eps 0", "log-linear", "cosine", "polynomial 2"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_bound_is_the_chain_s_divergence(name, steps):
    schedule = SCHEDULES[name]
    chain = bound = 0.0
    for k in range(steps):
        s, t = D3PM(steps=steps).times_and_weights(jnp.array([[(k + 0.5) / steps]]))
        s, t = float(s[0, 0]), float(t[0, 0])
        assert (k == 0) == (s == 0)
        expected = divergences(schedule, s, t)
        ours = np.asarray(formula(schedule, s, t).bound, np.float64)
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)
        assert np.isfinite(ours).all() and (ours[~HIDDEN] == 0).all()
        noised = float(schedule.one_minus_alpha(jnp.asarray(t)))
        q = np.prod(np.where(HIDDEN, noised, 1 - noised), axis=1) * np.repeat(
            DATA.p, len(DATA.hidings)
        )
        chain += (q * expected.sum(-1)).sum()
        bound += (q * ours.sum(-1)).sum()
    assert bound == pytest.approx(chain, rel=1e-5)
    assert bound > DATA.entropy


@pytest.mark.parametrize("name", ["linear in sigma", "geometric", "polynomial 3, eps"])
def test_schedules_that_are_not_clean_at_0(name):
    schedule = SCHEDULES[name]
    for s, t in ((0.0, 0.2), (0.4, 0.6)):
        ours = formula(schedule, s, t).bound
        np.testing.assert_allclose(ours, divergences(schedule, s, t), rtol=2e-4, atol=2e-6)


def test_digits_remain_with_many_steps():
    """In float32 the step's two logarithms, subtracted, would lose three digits of a thousandth."""
    schedule = LogLinear(eps=0.0)
    for k in (1, 500, 998):
        s, t = (np.float32(a / 1000) for a in (k, k + 1))
        ours = formula(schedule, s, t, scale=1000.0).bound
        # float32 times: the step's length has four digits.
        expected = 1000 * divergences(schedule, float(s), float(t))
        np.testing.assert_allclose(ours, expected, rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["log-linear, eps 0", "geometric"])
def test_without_mass_on_the_mask_it_is_the_discrete_nelbo(name):
    schedule = SCHEDULES[name]
    u = jnp.asarray(np.random.default_rng(0).uniform(size=(len(X), 1)), jnp.float32)
    batch, z_t = DATA.batch(X), jnp.asarray(Z, jnp.int32)
    fields = {"mask_id": MASK, "vocab_size": STATES}
    process = Masked(schedule=schedule, mask_id=MASK)
    as_mean, as_subs = (
        Diffusion(process=process, parameterization=kind(**fields), denoise=denoise)
        for kind in (Mean, Subs)
    )
    s, t = D3PM(steps=20).times_and_weights(u)
    ours = score_step(batch, as_mean, z_t=z_t, s=s, t=t, scale=20)
    t, weight = DiscreteNelbo(steps=20).times_and_weights(schedule, u)
    theirs = score_masked(batch, as_subs, z_t=z_t, t=t, weight=weight)
    np.testing.assert_array_equal(ours.values, theirs.values)
    np.testing.assert_array_equal(ours.total, theirs.total)
    np.testing.assert_array_equal(ours.scored, theirs.scored)


def test_mass_on_the_mask_costs_the_divergence_of_whether():
    schedule = LogLinear(eps=0.0)
    s, t = 0.35, 0.6
    with_mass = np.asarray(formula(schedule, s, t).bound, np.float64)[HIDDEN]
    without = np.asarray(formula(schedule, s, t, mask_has_mass=False).bound, np.float64)[HIDDEN]
    z = jnp.asarray(Z, jnp.int32)
    mean = Mean(mask_has_mass=True, mask_id=MASK, vocab_size=STATES)
    p = jnp.exp(mean.log_p0(denoise(NetInput(tokens=z)).logits(), z)[..., MASK])
    p_mask = np.asarray(p, np.float64)[HIDDEN]
    r = (t - s) / t
    modelled = (t - s) * (1 - p_mask) / (t + (1 - t) * p_mask)
    whether = r * np.log(r / modelled) + (1 - r) * np.log((1 - r) / (1 - modelled))
    assert whether.min() > 1e-3
    np.testing.assert_allclose(with_mass - without, whether, rtol=1e-4, atol=1e-6)


def test_expected_loss_is_the_chain_s_bound():
    """The whole objective, its own draws included, within four standard errors."""
    schedule, steps, rows, repeats = LogLinear(eps=0.0), 4, 4096, 20
    mean = Mean(mask_has_mass=True, mask_id=MASK, vocab_size=STATES)
    tokens = jnp.asarray(
        np.random.default_rng(0)
        .choice(len(DATA.p), rows * repeats, p=DATA.p)
        .reshape(repeats, rows)
    )

    @jax.jit
    def once(key, rank):
        batch = DATA.batch(np.zeros((rows, DATA.length)))
        batch = type(batch)(**{**vars(batch), "tokens": jnp.asarray(DATA.sequences)[rank]})
        return (
            D3PM(steps=steps)(
                key,
                batch,
                diffusion=Diffusion(
                    process=Masked(schedule=schedule, mask_id=MASK),
                    parameterization=mean,
                    denoise=denoise,
                ),
            ).bound.sum()
            / rows
        )

    keys = jax.random.split(jax.random.key(1), repeats)
    seen = np.array([once(*pair) for pair in zip(keys, tokens, strict=True)], np.float64)
    error = seen.std(ddof=1) / np.sqrt(repeats)
    expected = 0.0
    for k in range(steps):
        s, t = k / steps, (k + 1) / steps
        q = np.prod(np.where(HIDDEN, t, 1 - t), axis=1) * np.repeat(DATA.p, len(DATA.hidings))
        expected += (q * divergences(schedule, s, t).sum(-1)).sum()
    assert error < 0.01 * expected
    assert abs(seen.mean() - expected) < 4 * error
