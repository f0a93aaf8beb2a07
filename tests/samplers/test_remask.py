"""Samplers that take tokens back, against distributions that are known exactly."""

import itertools
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
    distance,
    frequencies,
    noise_floor,
    posterior,
    sample,
)

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.loop import generate
from mdlm.samplers.remask import (
    Remask,
    RemaskLoop,
    largest_sigma,
    least_confident,
    reveal_probability,
)
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import Cosine, LinearSigma, LogLinear
from mdlm.schedules.per_token import LearnedPolynomial
from mdlm.types import DenseLogits

STRATEGIES = ["cap", "rescale", "forward-backward", "dfm"]


def rates(sampler, schedule, t, s):
    """alpha at both times, and the probabilities of revealing and of removing, of one step."""
    t, s = jnp.float32(t), jnp.float32(s)
    if isinstance(sampler, RemaskLoop):
        noised_t, noised_s = sampler.noised(t), sampler.noised(s)
        gap, sigma = noised_t - noised_s, sampler.sigma(t, s)
    else:
        noised_t, noised_s = schedule.one_minus_alpha(t), schedule.one_minus_alpha(s)
        gap = schedule.alpha_gap(s, t)
        sigma = sampler.sigma(noised_t, noised_s, gap)
    reveal = reveal_probability(noised_t, noised_s, gap, sigma)
    return [float(a) for a in (1 - noised_t, 1 - noised_s, reveal, sigma)]


STATES = np.array(list(itertools.product(range(SYMBOLS + 1), repeat=2)))
PAIRS = P_DATA.reshape(SYMBOLS, SYMBOLS, SYMBOLS).sum(-1).ravel()  # of the first two tokens
CLEAN = STATES[(STATES < SYMBOLS).all(-1)]


def noised_marginal(alpha):
    """The distribution of z_t over `STATES`."""
    keeps, is_masked = STATES[None] == CLEAN[:, None], STATES[None] == MASK
    q = np.where(is_masked, 1 - alpha, np.where(keeps, alpha, 0.0)).prod(-1)
    return PAIRS @ q


def kernel(reveal, remove, independent):
    """The transition matrix of one step, from sums over what is revealed and what is removed.

    Revealed tokens are drawn from their joint posterior, or each from its own.
    """
    matrix = np.zeros((len(STATES), len(STATES)))
    for i, z in enumerate(STATES):
        p = PAIRS * ((CLEAN == z) | (z == MASK)).all(-1)
        p /= p.sum()
        if independent:
            marginal = np.stack([p @ (CLEAN == v) for v in range(SYMBOLS)])
            p = np.array([marginal[x[0], 0] * marginal[x[1], 1] for x in CLEAN])
        for x, weight in zip(CLEAN, p, strict=True):
            for j, to in enumerate(STATES):
                chance = weight
                for a, b, token in zip(z, to, x, strict=True):
                    if a == MASK:
                        chance *= reveal if b == token else (1 - reveal) * (b == MASK)
                    else:
                        chance *= remove if b == MASK else (1 - remove) * (b == a)
                matrix[i, j] += chance
    return matrix


@pytest.mark.parametrize("schedule", [LogLinear(eps=0.0), LogLinear(), Cosine()])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_keeps_the_marginal_distribution(strategy, schedule):
    for t, s in ((1.0, 0.9), (0.6, 0.5), (0.3, 0.29), (0.1, 0.0)):
        alpha_t, alpha_s, reveal, remove = rates(Remask(strategy=strategy), schedule, t, s)
        assert 0 <= remove <= 1 and 0 <= reveal <= 1
        assert remove > 0 or t == 1 or s == 0
        after = noised_marginal(alpha_t) @ kernel(reveal, remove, independent=False)
        np.testing.assert_allclose(after, noised_marginal(alpha_s), atol=2e-6)


def test_the_loop_keeps_the_marginal_distribution():
    sampler, fine = RemaskLoop(eta=0.05), 2e-6
    for t, s in ((1.0, 0.9), (0.6, 0.5), (0.5, 0.4), (0.1, 0.04), (0.05, 0.02), (0.02, 0.0)):
        alpha_t, alpha_s, reveal, remove = rates(sampler, None, t, s)
        after = noised_marginal(alpha_t) @ kernel(reveal, remove, independent=False)
        np.testing.assert_allclose(after, noised_marginal(alpha_s), atol=fine)
    alpha_t, alpha_s, reveal, remove = rates(sampler, None, 0.5, 0.4)
    assert alpha_t == alpha_s == pytest.approx(0.9) and remove == pytest.approx(0.05)
    assert reveal == pytest.approx(0.05 * 0.9 / 0.1)
    assert rates(sampler, None, 1.0, 0.0)[:2] == [0.0, 1.0]


def test_a_corrector_at_a_fixed_time_keeps_the_distribution_of_noised_rows():
    """Drawing revealed tokens each by itself costs the square of what is revealed."""
    off = []
    for sigma in (0.04, 0.02):
        reveal = float(reveal_probability(*jnp.array([0.4, 0.4, 0.0, sigma])))
        assert reveal == pytest.approx(sigma * 0.6 / 0.4)
        p = noised_marginal(0.6)
        np.testing.assert_allclose(p @ kernel(reveal, sigma, False), p, atol=1e-6)
        off.append(np.abs(p @ kernel(reveal, sigma, True) - p).sum())
    assert off[0] > 1e-5 and off[0] / off[1] == pytest.approx(4, rel=0.1)


def test_published_formulas():
    """In numpy, from the papers: alpha = 1 - t, a step from 0.5 to 0.4, and one of the first."""
    schedule = LogLinear(eps=0.0)
    expected = {
        "cap": 0.04,
        "rescale": 0.015 * 0.8,  # of (1 - 0.6) / 0.5
        "forward-backward": 0.1 / 0.5,
        "dfm": min(0.8, 10 * 0.25**0.25 * 0.1 / 0.5),
    }
    for strategy, sigma in expected.items():
        _, _, reveal, remove = rates(Remask(strategy=strategy), schedule, 0.5, 0.4)
        assert remove == pytest.approx(sigma, rel=1e-5)
        assert reveal == pytest.approx((0.6 - (1 - sigma) * 0.5) / 0.5, rel=1e-5)
    b = 10 * 0.25**0.25  # their reveals are b + 1 times those of ancestral sampling
    _, _, reveal, remove = rates(Remask(strategy="dfm"), schedule, 0.5, 0.499)
    assert reveal == pytest.approx((b + 1) * 0.001 / 0.5, rel=1e-4)
    assert remove == pytest.approx(b * 0.001 / 0.5, rel=1e-4)
    assert rates(Remask(strategy="rescale", eta=1.0), schedule, 1.0, 0.9)[3] == 1  # alpha = 0
    np.testing.assert_allclose(largest_sigma(jnp.array([1, 0.5]), jnp.array([0.9, 0.0])), [1, 0])


def test_without_removal_the_distribution_is_that_of_ancestral_sampling(key):
    process = Masked(schedule=Cosine(), mask_id=MASK)
    for strategy in [*STRATEGIES, "confidence"]:
        for t, s in ((1.0, 0.9), (0.31, 0.3), (0.1, 0.0)):
            sampler = Remask(strategy=strategy, eta=0.0)
            *_, reveal, remove = rates(sampler, process.schedule, t, s)
            expected = process.reveal_probability(jnp.float32(t), jnp.float32(s))
            assert remove == 0 and reveal == pytest.approx(float(expected), rel=1e-6)
    rows, steps = 4_000, 2
    theirs = np.asarray(sample(key, rows, Ancestral(steps=steps)).tokens)
    ours = sample(key, rows, Remask(eta=0.0, steps=steps))
    assert distance(theirs, P_DATA) > 0.1  # at two steps that distribution is far from the data's
    assert distance(ours.tokens, frequencies(theirs)) < 2 * noise_floor(P_DATA, rows)


SAMPLERS = [
    Remask(strategy="cap", eta=0.01),
    Remask(strategy="rescale", eta=0.02),
    Remask(strategy="confidence", eta=0.5),
    Remask(strategy="forward-backward"),
    Remask(strategy="dfm", eta=3.0),
    RemaskLoop(alpha_on=0.6, eta=0.02),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: getattr(s, "strategy", "loop"))
def test_samples_tend_to_the_distribution_as_steps_grow(key, sampler):
    rows = 2_000
    off = [distance(sample(key, rows, replace(sampler, steps=n)).tokens, P_DATA) for n in (2, 32)]
    assert off[0] > 2.5 * off[1]
    assert off[1] < 2 * noise_floor(P_DATA, rows) + 0.02


def watched(key, sampler, rows):
    """What the network was asked in each step, of rows of twelve independent tokens."""
    seen = []

    def denoise(inputs, *, key=None):
        jax.debug.callback(lambda z: seen.append(np.asarray(z)), inputs.tokens)
        shape = (*inputs.tokens.shape, 4)
        return DenseLogits(jnp.broadcast_to(jnp.array([0.0, 0.3, 0.6, 50.0]), shape))

    shape = (1, 12)
    samples = sample(
        key,
        rows,
        sampler,
        tokens=np.zeros(shape, np.int32),
        is_fixed=np.zeros(shape, bool),
        denoise=denoise,
    )
    jax.effects_barrier()
    return np.stack(seen), samples


def test_steps_remove_and_reveal_their_share(key):
    """Counts of what changed between the calls, for independent tokens of one distribution."""
    steps = 10
    seen, samples = watched(key, Remask(strategy="rescale", eta=0.3, steps=steps), rows=1_000)
    assert len(seen) == steps == int(samples.nfe)
    for i, (before, after) in enumerate(zip(seen[:-1], seen[1:], strict=True)):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        _, _, reveal, remove = rates(Remask(strategy="rescale", eta=0.3), LogLinear(eps=0.0), t, s)
        for was_masked, p in ((True, reveal), (False, remove)):
            those = (before == MASK) == was_masked
            if those.any():
                share = ((after == MASK) != was_masked)[those].mean()
                assert abs(share - p) <= 4 * np.sqrt(p * (1 - p) / those.sum()) + 1e-9


def test_the_least_confident_go(key):
    confidence = jnp.array([[0.9, 0.2, 0.5, 0.0], [0.3, 0.3, 0.0, 0.0]])
    could_go = jnp.array([[True, True, True, False], [False] * 4])
    share = np.asarray(least_confident(confidence, could_go))
    expected = np.exp([-0.9, -0.2, -0.5])
    np.testing.assert_allclose(share[0], [*expected / expected.sum(), 0.0], rtol=1e-5)
    assert (share[1] == 0).all()
    # Removals by symbol, against what p itself makes of each step's rows.
    steps = 12
    seen, _ = watched(key, Remask(strategy="confidence", steps=steps), rows=2_000)
    p = np.exp([0.0, 0.3, 0.6, -np.inf])
    p /= p.sum()
    gone, expected, variance = np.zeros(3), np.zeros(3), np.zeros(3)
    for i, (before, after) in enumerate(zip(seen[:-1], seen[1:], strict=True)):
        weight = np.where(before == MASK, 0.0, np.exp(-p[before]))
        largest = min(1, (1 - (i + 1) / steps) / max(i / steps, 1e-9))
        chance = largest * weight / np.maximum(weight.sum(-1, keepdims=True), 1e-9)
        for v in range(3):
            is_v = before == v
            gone[v] += (is_v & (after == MASK)).sum()
            expected[v] += chance[is_v].sum()
            variance[v] += (chance * (1 - chance))[is_v].sum()
    assert (np.abs(gone - expected) < 4 * np.sqrt(variance)).all()
    assert gone.min() > 1_000


@pytest.mark.parametrize("sampler", [Remask(eta=0.3, steps=9), RemaskLoop(eta=0.1, steps=9)])
def test_prompts_stay_no_mask_is_left_and_rows_are_their_own(key, sampler):
    rng = np.random.default_rng(1)
    tokens, is_fixed = rng.integers(0, SYMBOLS, (64, LENGTH)), rng.random((64, LENGTH)) < 0.4
    keys = by_row(key, jnp.arange(64))
    run = jax.jit(
        lambda *row: generate(
            *row, sampler=sampler, diffusion=Diffusion(denoise=posterior, **PARTS)
        )
    )
    samples = run(keys, tokens, is_fixed)
    found = np.asarray(samples.tokens)
    assert (found[is_fixed] == tokens[is_fixed]).all()
    assert (found < SYMBOLS).all() and (found >= 0).all()
    assert int(samples.nfe) <= 9
    few = slice(20, 25)
    alone = run(keys[few], tokens[few], is_fixed[few])
    assert (np.asarray(alone.tokens) == found[few]).all()


def test_removed_tokens_have_no_confidence(key):
    sampler, diffusion = (
        Remask(strategy="rescale", eta=0.5, steps=6),
        Diffusion(denoise=posterior, **PARTS),
    )
    rows = (16, LENGTH)
    is_fixed = np.zeros(rows, bool)
    is_fixed[:, 1] = True
    keys = by_row(key, jnp.arange(16))
    init = jax.jit(lambda *given: sampler.init(*given, diffusion))
    state = init(keys, jnp.ones(rows, jnp.int32), jnp.asarray(is_fixed))
    advance = jax.jit(lambda state: sampler.step(state, diffusion))
    gone = 0
    for step in range(6):
        before = np.asarray(state.tokens)
        state = advance(state)
        state = replace(state, step=state.step + 1)
        after, c = np.asarray(state.tokens), np.asarray(state.confidence)
        assert (c[after == MASK] == 0).all() and (c[after != MASK] > 0).all()
        assert (c[:, 1] == 1).all()
        gone += ((before != MASK) & (after == MASK)).sum()
        assert not np.asarray(state.done).any() or step == 5
    assert gone > 0 and np.asarray(state.done).all()


class Unfinished(LogLinear):
    """At alpha(0) = 0.6 four tokens in ten are still masked after the last step."""

    def alpha(self, t, x_0=None):
        return 0.6 * (1 - t)

    def one_minus_alpha(self, t, x_0=None):
        return 1 - self.alpha(t)

    def alpha_gap(self, s, t, x_0=None):
        return 0.6 * (t - s)


@pytest.mark.parametrize("last", ["draw", "argmax"])
def test_what_the_schedule_leaves_masked_is_resolved(key, last):
    rows, steps = 1_000, 4

    def denoise(inputs, *, key=None):
        log_p = jnp.log(jnp.asarray([[[0.3, 0.5, 0.2, 0.0]]]))
        return DenseLogits(jnp.broadcast_to(log_p, (*inputs.tokens.shape, 4)))

    process = Masked(schedule=Unfinished(), mask_id=MASK)
    sampler = Remask(steps=steps, last=last)
    samples = sample(key, rows, sampler, process=process, denoise=denoise)
    tokens = np.asarray(samples.tokens)
    assert (tokens != MASK).all() and int(samples.nfe) == steps + 1
    expected = 0.5 if last == "draw" else 0.6 * 0.5 + 0.4
    assert abs((tokens == 1).mean() - expected) < 4 * 0.5 / np.sqrt(tokens.size)


def test_what_it_is_not_for_is_refused():
    per_token = Masked(schedule=LearnedPolynomial())
    for sampler in (Remask(), RemaskLoop()):
        assert "rate for each" in (sampler.incompatibility(per_token, Subs()) or "")
        assert sampler.incompatibility(Masked(schedule=LinearSigma()), Subs()) is None

    class NoInverse(Schedule):
        def alpha(self, t, x_0=None):
            return 1 - t

    assert "no inverse" in (
        RemaskLoop().incompatibility(Masked(schedule=NoInverse()), Subs()) or ""
    )
    assert Remask().incompatibility(Masked(schedule=NoInverse()), Subs()) is None


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Remask(eta=-0.1), "eta"),
        (lambda: Remask(eta=1.1), "eta"),
        (lambda: Remask(strategy="dfm", eta=-1.0), "eta"),
        (lambda: Remask(strategy="all"), "strategy"),
        (lambda: Remask(last="best"), "last"),
        (lambda: Remask(steps=0), "steps"),
        (lambda: RemaskLoop(eta=0.2), "eta"),
        (lambda: RemaskLoop(t_on=0.04), "t_on"),
        (lambda: RemaskLoop(alpha_on=1.0), "alpha_on"),
    ],
)
def test_settings_out_of_range_are_refused(make, name):
    # TypeError: the annotations, which tests check, may notice first.
    with pytest.raises((ValueError, TypeError), match=name):
        make()
