"""Path planning: what is kept is counted, scored and chosen anew in every step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import LENGTH, MASK, P_DATA, PARTS, SYMBOLS, distance, noise_floor, posterior, sample

from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.loop import generate
from mdlm.samplers.path_planning import PathPlanning, highest, kept_of
from mdlm.schedules.per_token import LearnedPolynomial
from mdlm.types import DenseLogits


def watched(key, sampler, denoise, length=10, rows=200):
    """What the network was asked in each step, and the samples."""
    seen = []

    def asked(inputs, *, key=None):
        jax.debug.callback(lambda z: seen.append(np.asarray(z)), inputs.tokens)
        return denoise(inputs)

    shape = (1, length)
    is_fixed = np.arange(length)[None] < 2  # two prompt tokens
    samples = sample(
        key, rows, sampler, tokens=np.ones(shape, np.int32), is_fixed=is_fixed, denoise=asked
    )
    jax.effects_barrier()
    return np.stack([*seen, np.asarray(samples.tokens)]), samples


def independent(inputs, *, key=None):
    log_p = jnp.log(jnp.array([0.2, 0.3, 0.5, 0.9]))
    return DenseLogits(jnp.broadcast_to(log_p, (*inputs.tokens.shape, 4)))


def by_position(inputs, *, key=None):
    """Sure of each position in an order of its own, whatever is asked."""
    l = inputs.tokens.shape[1]
    sharp = 1.0 + (7 * jnp.arange(l)) % l
    logits = sharp[:, None] * jnp.array([0.0, 1.0, -1.0, 0.0])[None]
    return DenseLogits(jnp.broadcast_to(logits[None], (*inputs.tokens.shape, 4)))


def test_random_order_one_by_one_has_the_very_distribution(key):
    """eta = 0, random scores, as many steps as tokens: no two are drawn together."""
    rows = 4_000
    exact = PathPlanning(eta=0.0, score="random", steps=LENGTH)
    samples = sample(key, rows, exact)
    assert distance(samples.tokens, P_DATA) < 1.4 * noise_floor(P_DATA, rows)
    assert int(samples.nfe) == LENGTH
    at_once = sample(key, rows, PathPlanning(eta=0.0, score="random", steps=1))
    assert distance(at_once.tokens, P_DATA) > 0.1


@pytest.mark.slow
def test_random_scores_choose_all_positions_alike(key):
    seen, _ = watched(key, PathPlanning(eta=0.0, score="random", steps=8), independent, rows=2_000)
    is_first = (seen[1] != MASK)[:, 2:]
    assert (is_first.sum(-1) == 1).all()
    share = is_first.mean(0)
    assert (np.abs(share - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / 2_000)).all()


@pytest.mark.parametrize("score", ["random", "probability"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_each_step_keeps_its_count(key, eta, score):
    steps = 5
    sampler = PathPlanning(eta=eta, score=score, steps=steps)
    seen, samples = watched(key, sampler, independent)
    masked = (seen == MASK).sum(-1)
    expected = [8 - int(np.floor(8 * (1 - i / steps) + 1e-6)) for i in range(steps + 1)]
    np.testing.assert_array_equal(
        masked, np.broadcast_to(8 - np.array(expected)[:, None], (6, 200))
    )
    assert int(samples.nfe) == steps and (seen[:, :, :2] == 1).all()
    # No token becomes another; some are taken back, unless eta is 0.
    before, after = seen[:-1], seen[1:]
    assert ((before == after) | (before == MASK) | (after == MASK)).all()
    taken = ((before != MASK) & (after == MASK)).sum()
    assert taken == 0 if eta == 0 else taken > 0


@pytest.mark.slow
def test_larger_eta_takes_back_more(key):
    taken = []
    for eta in (0.3, 1.0, 3.0):
        seen, _ = watched(key, PathPlanning(eta=eta, steps=5), independent)
        taken.append(((seen[:-1] != MASK) & (seen[1:] == MASK)).sum())
    assert taken[0] < taken[1] < taken[2]


@pytest.mark.slow
def test_the_surest_are_written_first(key):
    order = np.argsort(-((7 * np.arange(10)) % 10), kind="stable")
    order = order[order >= 2]  # without the prompt
    sampler = PathPlanning(eta=1.0, steps=8, temperature=0.0)
    seen, _ = watched(key, sampler, by_position, rows=2)
    for i, state in enumerate(seen):
        assert set(np.flatnonzero(state[0, 2:] != MASK) + 2) == set(order[:i])
        assert (state[state != MASK] == 1).all()  # the likeliest


def test_scores_of_what_is_there_are_the_networks_own():
    """A token the network now finds unlikely goes, though everything else is less sure still."""
    sampler = PathPlanning(eta=1.0, steps=3, temperature=0.0)

    def denoise(inputs, *, key=None):
        p = jnp.array([[0.98, 0.01, 0.01, 1], [0.4, 0.35, 0.25, 1], [0.5, 0.3, 0.2, 1]])
        return DenseLogits(jnp.broadcast_to(jnp.log(p)[None], (*inputs.tokens.shape, 4)))

    diffusion = Diffusion(denoise=denoise, **PARTS)
    state = sampler.init(
        by_row(jax.random.key(0), jnp.arange(1)),
        jnp.zeros((1, 3), jnp.int32),
        jnp.zeros((1, 3), bool),
        diffusion,
    )
    # One token is there, of probability 0.01; two masks remain of three after no step at all.
    state = replace(state, tokens=jnp.array([[1, MASK, MASK]]), step=jnp.asarray(0))
    after = sampler.step(state, diffusion)
    np.testing.assert_array_equal(after.tokens, [[MASK, MASK, 0]])
    np.testing.assert_allclose(after.confidence, [[0, 0, 0.5]], rtol=1e-5)
    state = replace(state, tokens=jnp.array([[0, MASK, MASK]]))
    np.testing.assert_array_equal(sampler.step(state, diffusion).tokens, [[0, MASK, MASK]])


def test_counts_and_choices():
    is_open = jnp.array([[True, True, True, False], [True] * 4])
    share = jnp.full((2, 1), 0.7)
    np.testing.assert_array_equal(kept_of(is_open, share), [[1], [2]])
    np.testing.assert_array_equal(kept_of(is_open, jnp.zeros((2, 1))), [[3], [4]])
    # 22 * (13 / 22) is just below 13 in float32.
    assert kept_of(jnp.ones((1, 22), bool), jnp.full((1, 1), 13 / 22)) == 9
    chosen = highest(jnp.array([[3.0, 1.0, 2.0, 9.0]]), is_open[:1], jnp.array([[2.0]]))
    np.testing.assert_array_equal(chosen, [[True, False, True, False]])
    # eta = 0 keeps what is there even beside certain proposals.
    scores = PathPlanning(eta=0.0).scores(
        jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.1]]), jnp.array([[True, False]])
    )
    assert scores[0, 1] > scores[0, 0]


@pytest.mark.parametrize("score", ["random", "probability"])
def test_prompts_stay_no_mask_is_left_and_rows_are_their_own(key, score):
    rng = np.random.default_rng(1)
    tokens, is_fixed = rng.integers(0, SYMBOLS, (64, LENGTH)), rng.random((64, LENGTH)) < 0.4
    sampler = PathPlanning(eta=2.0, score=score, steps=7)
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
    assert int(samples.nfe) <= 7
    few = slice(20, 25)
    alone = run(keys[few], tokens[few], is_fixed[few])
    assert (np.asarray(alone.tokens) == found[few]).all()


def test_what_it_is_not_for_is_refused():
    assert PathPlanning().incompatibility(Masked(), Subs()) is None
    per_token = Masked(schedule=LearnedPolynomial())
    assert "rate for each" in (PathPlanning().incompatibility(per_token, Subs()) or "")


@pytest.mark.parametrize("setting", [{"eta": -1.0}, {"eta": float("inf")}, {"score": "margin"}])
def test_settings_out_of_range_are_refused(setting):
    (name,) = setting
    # TypeError: the annotations, which tests check, may notice first.
    with pytest.raises((ValueError, TypeError), match=name):
        PathPlanning(**setting)
