"""Psi samplers: the same marginal distributions as ancestral sampling, for any share of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import (
    LENGTH,
    MASK,
    P_DATA,
    PARTS,
    SYMBOLS,
    VOCAB,
    distance,
    noise_floor,
    posterior,
    sample,
)

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.score import Score
from mdlm.parameterizations.subs import Subs
from mdlm.processes.hybrid import LogSNRHybrid
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.loop import generate
from mdlm.samplers.psi import Psi, kappa_of, sigma_of
from mdlm.samplers.remask import Remask, reveal_probability
from mdlm.samplers.reverse import Reverse
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.schedules.per_token import LearnedPolynomial
from mdlm.types import DenseLogits

MEAN = Mean().with_vocab(VOCAB)
PAIR = np.random.default_rng(3).dirichlet(np.full(SYMBOLS**2, 0.5)).reshape(SYMBOLS, SYMBOLS)


def uniform(form):
    return Uniform(schedule=LogLinear(eps=0.0), posterior=form).with_vocab(VOCAB)


def reader(process):
    """The network that knows PAIR: p of each token given the other, and its own if mixed over."""

    def denoise(inputs, *, key=None):
        clean = jnp.arange(SYMBOLS)
        shape = (*inputs.tokens.shape, SYMBOLS)
        t = jnp.broadcast_to(inputs.t, inputs.tokens.shape)[..., None]
        z = inputs.tokens[..., None]
        q = process.probability(*jnp.broadcast_arrays(z, clean[None, None], t)).reshape(shape)
        # r(x_0 of one) = sum over the other of PAIR q(z of the other | other)
        pair = jnp.asarray(PAIR, jnp.float32)
        others = jnp.stack(
            [
                jnp.einsum("xy,by->bx", pair, q[:, 1]),
                jnp.einsum("xy,bx->by", pair, q[:, 0]),
            ],
            axis=1,
        )
        p = others * q if process.posterior == "mixture" else others
        return DenseLogits(jnp.pad(jnp.log(p), ((0, 0), (0, 0), (0, 1)), constant_values=50.0))

    return denoise


def drawn(key, sampler, process, rows, denoise=None, length=2):
    shape = (rows, length)
    return sample(
        key,
        rows,
        sampler,
        tokens=np.zeros(shape, np.int32),
        is_fixed=np.zeros(shape, bool),
        denoise=denoise or reader(process),
        process=process,
        parameterization=MEAN,
    )


def off(tokens, p=PAIR):
    counts = np.bincount(np.asarray(tokens) @ [SYMBOLS, 1], minlength=p.size) / len(tokens)
    return 0.5 * np.abs(counts - p.ravel()).sum()


@pytest.mark.parametrize("schedule", [LogLinear(eps=0.0), LogLinear(), Cosine()])
def test_masking_is_remasking_with_another_name(schedule):
    process = Masked(schedule=schedule, mask_id=MASK)
    state = Remask().init(
        by_row(jax.random.key(0), jnp.arange(1)),
        jnp.zeros((1, 2), jnp.int32),
        jnp.zeros((1, 2), bool),
        Diffusion(process=process, parameterization=MEAN, denoise=posterior),
    )
    for t, s in ((1.0, 0.9), (0.6, 0.5), (0.3, 0.29), (0.1, 0.0)):
        t, s = jnp.full((1, 1), t), jnp.full((1, 1), s)
        alpha_t, alpha_s = (float(schedule.alpha(a)[0, 0]) for a in (t, s))
        # kappa = 1: ancestral sampling.
        plan = Psi(kappa=1.0).exchange(state, t, s, process=process)
        np.testing.assert_allclose(plan.reveal, process.reveal_probability(t, s), rtol=1e-6)
        assert (plan.remove == 0).all()
        # The mixture of the two distributions, straight from its definition.
        plan = Psi(kappa=0.7).exchange(state, t, s, process=process)
        reveal = 0.7 * (alpha_s - alpha_t) / (1 - alpha_t) + 0.3 * alpha_s
        assert float(plan.reveal[0, 0]) == pytest.approx(reveal, abs=2e-6)
        assert float(plan.remove[0, 0]) == pytest.approx(0.3 * (1 - alpha_s), abs=1e-6)
        # kappa made from ReMDM's sigma gives ReMDM's step.
        for remask in (Remask(strategy="cap"), Remask(strategy="rescale", eta=0.3)):
            theirs = remask.exchange(state, t, s, process=process)
            noised = schedule.one_minus_alpha(s)
            kappa = kappa_of(theirs.remove, noised)
            if (theirs.remove <= noised).all():
                np.testing.assert_allclose(sigma_of(kappa, noised), theirs.remove, atol=1e-6)
                ours = Psi(kappa=float(kappa[0, 0])).exchange(state, t, s, process=process)
                np.testing.assert_allclose(ours.reveal, theirs.reveal, atol=2e-6)
                np.testing.assert_allclose(ours.remove, theirs.remove, atol=1e-6)
            else:
                assert (kappa == 0).all()
    assert reveal_probability(*jnp.array([0.5, 0.4, 0.1, 0.0])) == pytest.approx(0.2)


@pytest.mark.slow
def test_masked_samples_tend_to_the_distribution(key):
    rows = 2_000
    far, near = (
        distance(sample(key, rows, Psi(kappa=0.95, steps=steps)).tokens, P_DATA)
        for steps in (2, 32)
    )
    assert far > 2.5 * near
    assert near < 2 * noise_floor(P_DATA, rows) + 0.02


def step_of(sampler, process, denoise):
    return jax.jit(
        lambda state: sampler.step(
            state, diffusion=Diffusion(process=process, parameterization=MEAN, denoise=denoise)
        )
    )


def begun(sampler, process, key, rows, length):
    shape = (rows, length)
    keys = by_row(key, jnp.arange(rows))
    diffusion = Diffusion(process=process, parameterization=MEAN, denoise=posterior)
    return sampler.init(keys, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), diffusion)


@pytest.mark.parametrize(
    "process",
    [
        uniform("plug_in"),
        LogSNRHybrid(schedule=LogLinear(eps=1e-2), posterior="mixture").with_vocab(VOCAB),
    ],
    ids=lambda process: type(process).__name__,
)
def test_with_kappa_one_it_draws_what_reverse_draws(key, process):
    ours, theirs = Psi(kappa=1.0, steps=4), Reverse(steps=4)
    first, second = (step_of(s, process, reader(process)) for s in (ours, theirs))
    a = b = begun(ours, process, key, 200, 2)
    for i in range(4):
        a, b = (replace(f(z), step=jnp.asarray(i + 1)) for f, z in ((first, a), (second, b)))
        assert (np.asarray(a.tokens) == np.asarray(b.tokens)).all()
        assert (np.asarray(a.done) == np.asarray(b.done)).all() and int(a.nfe) == i + 1
    assert a.done.all()


@pytest.mark.parametrize("coordinate", ["plug_in", "mixture"])
@pytest.mark.parametrize("kappa", [0.0, 0.6])
def test_one_token_steps_by_its_distribution(key, coordinate, kappa):
    """Uniform noise: the transition is as defined, and the distribution of z_t kept."""
    rows, distribution = 10_000, np.array([0.7, 0.2, 0.1])
    process = uniform(coordinate)

    def denoise(inputs, *, key=None):
        p = jnp.broadcast_to(
            jnp.asarray(distribution, jnp.float32), (*inputs.tokens.shape, SYMBOLS)
        )
        if coordinate == "mixture":
            z, t = inputs.tokens[..., None], jnp.broadcast_to(inputs.t, inputs.tokens.shape)
            p = p * process.probability(
                *jnp.broadcast_arrays(z, jnp.arange(SYMBOLS)[None, None], t[..., None])
            )
        return DenseLogits(jnp.pad(jnp.log(p), ((0, 0), (0, 0), (0, 1)), constant_values=50.0))

    sampler = Psi(kappa=kappa, steps=4)
    state, step = begun(sampler, process, key, rows, 1), step_of(sampler, process, denoise)
    noised = lambda t: (1 - t) * distribution + t / SYMBOLS
    given = lambda t: (1 - t) * np.eye(SYMBOLS) + t / SYMBOLS  # q(z_t | x_0), a row for each x_0
    for i, s in enumerate((0.75, 0.5, 0.25, 0.0)):
        t, before = s + 0.25, np.asarray(state.tokens)[:, 0]
        state = replace(step(state), step=jnp.asarray(i + 1))
        after = np.asarray(state.tokens)[:, 0]
        share = np.bincount(after, minlength=SYMBOLS) / rows
        error = np.sqrt(noised(s) * (1 - noised(s)) / rows)
        assert (np.abs(share - noised(s)) < 4 * error).all()
        # The transition: Bayes back, or the clean token given z_t by Bayes and noised anew.
        kept = (1 - t) / (1 - s)
        forward = kept * np.eye(SYMBOLS) + (1 - kept) / SYMBOLS
        back = (noised(s)[:, None] * forward / noised(t)).T
        clean = (distribution[:, None] * given(t) / noised(t)).T
        expected = kappa * back + (1 - kappa) * clean @ given(s)
        for z in range(SYMBOLS):
            n = (before == z).sum()
            share = np.bincount(after[before == z], minlength=SYMBOLS) / n
            error = np.sqrt(expected[z] * (1 - expected[z]) / n)
            assert (np.abs(share - expected[z]) < 4 * error + 1e-9).all()


@pytest.mark.slow
def test_uniform_samples_tend_to_the_distribution(key):
    rows, process = 4_000, uniform("plug_in")
    near = off(drawn(key, Psi(kappa=0.95, steps=32), process, rows).tokens)
    independent = PAIR.sum(1, keepdims=True) * PAIR.sum(0, keepdims=True)
    assert 0.5 * np.abs(independent - PAIR).sum() > 0.1  # what one step draws from
    assert near < 2 * noise_floor(PAIR.ravel(), rows) + 0.01


def test_kappa_may_change_with_time():
    t = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(Psi(kappa=0.3).kappa_at(t), 0.3, rtol=1e-6)
    np.testing.assert_allclose(Psi(kappa=(1.0, 0.5, 0.9)).kappa_at(t), [1, 0.75, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("last", ["draw", "argmax"])
def test_masks_that_hybrid_noise_leaves_are_resolved(key, last):
    class Unfinished(LogLinear):
        def alpha(self, t, x_0=None):
            return 0.01 + 0.59 * (1 - t)

        def one_minus_alpha(self, t, x_0=None):
            return 1 - self.alpha(t)

        def alpha_gap(self, s, t, x_0=None):
            return 0.59 * (t - s)

    process = LogSNRHybrid(schedule=Unfinished(), shift=-50.0).with_vocab(VOCAB)

    def denoise(inputs, *, key=None):
        log_p = jnp.log(jnp.array([0.3, 0.5, 0.2, 0.5]))
        return DenseLogits(jnp.broadcast_to(log_p, (*inputs.tokens.shape, 4)))

    samples = drawn(key, Psi(steps=2, last=last), process, rows=2_000, denoise=denoise)
    tokens = np.asarray(samples.tokens)
    assert (tokens != MASK).all() and int(samples.nfe) == 3
    share = 0.5 if last == "draw" else 0.6 * 0.5 + 0.4
    assert abs((tokens == 1).mean() - share) < 4 * 0.5 / np.sqrt(tokens.size)


@pytest.mark.parametrize(
    "process", [PARTS["process"], uniform("plug_in")], ids=["masked", "uniform"]
)
def test_prompts_stay_no_mask_is_left_and_rows_are_their_own(key, process):
    rng = np.random.default_rng(1)
    is_masked = isinstance(process, Masked)
    shape = (32, LENGTH if is_masked else 2)
    sampler = Psi(kappa=0.7, steps=6)
    diffusion = Diffusion(
        process=process,
        parameterization=Subs().with_vocab(VOCAB) if is_masked else MEAN,
        denoise=posterior if is_masked else reader(process),
    )
    run = jax.jit(lambda *inputs: generate(*inputs, sampler=sampler, diffusion=diffusion))
    tokens, is_fixed = rng.integers(0, SYMBOLS, shape), rng.random(shape) < 0.4
    keys = by_row(key, jnp.arange(32))
    samples = run(keys, tokens, is_fixed)
    found = np.asarray(samples.tokens)
    assert (found[is_fixed] == tokens[is_fixed]).all()
    assert (found < SYMBOLS).all() and (found >= 0).all()
    assert int(samples.nfe) <= 6
    # Rows drawn beside others.
    order = np.append(np.arange(5), rng.permutation(np.arange(5, 32)))
    beside = run(keys[order], tokens[order], is_fixed[order])
    assert (np.asarray(beside.tokens)[:5] == found[:5]).all()
    tokens[5:], is_fixed[5:] = 0, True
    beside = run(keys, tokens, is_fixed)
    assert (np.asarray(beside.tokens)[:5] == found[:5]).all()


def test_what_it_is_not_for_is_refused():
    assert Psi().incompatibility(PARTS["process"], Subs()) is None
    assert Psi().incompatibility(uniform("plug_in"), Mean()) is None
    assert "Subs" in (Psi().incompatibility(Masked(), Mean()) or "")
    assert "Mean" in (Psi().incompatibility(uniform("plug_in"), Subs()) or "")
    assert "rate for each" in (
        Psi().incompatibility(Masked(schedule=LearnedPolynomial()), Subs()) or ""
    )
    assert not issubclass(Score, Psi.parameterizations)


@pytest.mark.parametrize("kappa", [-0.1, 1.1, (), (0.5, 2.0)])
def test_settings_out_of_range_are_refused(kappa):
    with pytest.raises(ValueError, match="kappa"):
        Psi(kappa=kappa)
