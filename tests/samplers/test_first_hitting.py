"""First hitting against distributions that are known exactly."""

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
    SEQUENCES,
    SYMBOLS,
    VOCAB,
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
from mdlm.processes.uniform import Uniform
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.first_hitting import FirstHitting, levels
from mdlm.samplers.loop import generate
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.schedules.md4 import OneMinusSine
from mdlm.schedules.per_token import LearnedPolynomial
from mdlm.types import DenseLogits, Vocab


def recorded(rows, length, value, largest, *, sampler, key, schedule=None, is_fixed=None):
    """Runs the sampler with a network whose token is `value(inputs)`, a number for each row."""
    vocab = Vocab(size=largest + 2, mask_id=largest + 1)

    def denoise(inputs, *, key=None):
        token = value(inputs).reshape(-1, 1, 1)
        hot = jnp.where(jnp.arange(vocab.size)[None, None] == token, 0.0, -jnp.inf)
        return DenseLogits(jnp.broadcast_to(hot, (*inputs.tokens.shape, vocab.size)))

    return sample(
        key,
        rows,
        sampler,
        tokens=np.zeros((1, length), np.int32),
        is_fixed=np.zeros((1, length), bool) if is_fixed is None else is_fixed,
        denoise=denoise,
        process=Masked(schedule=schedule or LogLinear(eps=0.0)).with_vocab(vocab),
        parameterization=Subs().with_vocab(vocab),
    )


@pytest.mark.parametrize("schedule", [LogLinear(eps=0.0), Cosine(), OneMinusSine(eps=0.01)])
def test_one_by_one_it_draws_the_distribution(key, schedule):
    rows = 20_000
    process = Masked(schedule=schedule).with_vocab(VOCAB)
    samples = sample(key, rows, FirstHitting(), process=process)
    assert (np.asarray(samples.tokens) != MASK).all()
    assert distance(samples.tokens, P_DATA) < 2 * noise_floor(P_DATA, rows)
    assert int(samples.nfe) == LENGTH


@pytest.mark.slow
def test_all_at_once_it_draws_the_product_of_the_marginals(key):
    rows = 20_000
    samples = sample(key, rows, FirstHitting(per_call=LENGTH))
    marginals = np.stack([P_DATA @ (SEQUENCES == v) for v in range(SYMBOLS)])
    product = np.prod([marginals[SEQUENCES[:, i], i] for i in range(LENGTH)], axis=0)
    assert distance(samples.tokens, product) < 2 * noise_floor(product, rows)
    assert distance(samples.tokens, P_DATA) > 10 * noise_floor(P_DATA, rows)
    assert int(samples.nfe) == 1


@pytest.mark.slow
def test_ancestral_tends_to_it_as_steps_grow(key):
    rows = 20_000
    hits = frequencies(sample(key, rows, FirstHitting()).tokens)
    off = [distance(sample(key, rows, Ancestral(steps=n)).tokens, hits) for n in (1, 8, 200)]
    assert off[0] > 3 * off[1] > 4 * off[2]
    # Pairs revealed in one step are left: three in 200 rows, each as far off as all at once.
    assert off[2] < 2 * np.sqrt(2) * noise_floor(P_DATA, rows) + 3 / 200 * off[0]


BINS = 2000


@pytest.mark.parametrize("schedule", [LogLinear(eps=0.0), Cosine(eps=0.0), Cosine(eps=0.1)])
@pytest.mark.parametrize("per_call", [1, 2])
def test_times_are_order_statistics(key, schedule, per_call):
    """(1 - alpha) / (1 - alpha_1) at the times that the network is told, in falling order."""
    rows, length = 2000, 4
    found = recorded(
        rows,
        length,
        lambda inputs: jnp.floor(inputs.t * BINS).astype(jnp.int32),
        BINS,
        sampler=FirstHitting(per_call=per_call),
        key=key,
        schedule=schedule,
    )
    times = (-np.sort(-np.asarray(found.tokens), axis=1) + 0.5) / BINS
    share = np.asarray(schedule.one_minus_alpha(times) / schedule.one_minus_alpha(1.0))
    assert int(found.nfe) == length // per_call
    for place in range(length):
        # The largest of `length` uniform numbers, or the second, ..: Beta(a, b).
        a = length - place // per_call * per_call
        b = length + 1 - a
        mean, variance = a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)
        off = (share[:, place] - mean) ** 2
        assert abs(share[:, place].mean() - mean) < 4 * np.sqrt(variance / rows) + 1 / BINS
        assert abs(off.mean() - variance) < 4 * off.std() / np.sqrt(rows) + 1 / BINS


@pytest.mark.slow
def test_nfe_is_that_of_the_fullest_row(key):
    tokens = np.zeros((4, 7), np.int32)
    is_fixed = np.arange(7)[None] < np.array([7, 5, 6, 2])[:, None]  # 0, 2, 1 and 5 open
    vocab = Vocab(size=4, mask_id=3)
    parts = dict(
        denoise=lambda inputs, key=None: DenseLogits(jnp.zeros((*inputs.tokens.shape, 4))),
        process=Masked().with_vocab(vocab),
        parameterization=Subs().with_vocab(vocab),
    )
    for per_call, calls in ((2, 3), (100, 1)):
        sampler = FirstHitting(per_call=per_call)
        samples = sample(key, 4, sampler, tokens=tokens, is_fixed=is_fixed, **parts)
        assert int(samples.nfe) == calls
    nothing = sample(key, 4, FirstHitting(), tokens=tokens, is_fixed=tokens == 0, **parts)
    assert int(nothing.nfe) == 0


@pytest.mark.parametrize("left_first", [0.0, 0.6])
def test_prompts_stay_and_condition_what_follows(key, left_first):
    rows = 20_000
    tokens, is_fixed = np.array([[7, 2, 7]]), np.array([[False, True, False]])
    sampler = FirstHitting(left_first=left_first)
    samples = sample(key, rows, sampler, tokens=tokens, is_fixed=is_fixed)
    conditional = P_DATA * (SEQUENCES[:, 1] == 2)
    conditional /= conditional.sum()
    assert (np.asarray(samples.tokens)[:, 1] == 2).all()
    assert distance(samples.tokens, conditional) < 2 * noise_floor(conditional, rows)
    assert int(samples.nfe) == 2


def test_a_row_does_not_depend_on_the_rows_beside_it(key):
    sampler, keys = FirstHitting(per_call=2, left_first=0.3), by_row(key, jnp.arange(40))

    @jax.jit
    def run(keys):
        tokens = jnp.zeros((len(keys), LENGTH), jnp.int32)
        return generate(
            keys,
            tokens,
            tokens > 0,
            sampler=sampler,
            diffusion=Diffusion(denoise=posterior, **PARTS),
        )

    together = np.asarray(run(keys).tokens)
    np.testing.assert_array_equal(run(keys[20:27]).tokens, together[20:27])
    assert len({tuple(row) for row in together}) > 5


@pytest.mark.parametrize("left_first", [0.2, 0.5, 0.9])
def test_left_first_levels(left_first):
    rows, length, w = 4000, 5, left_first
    u = np.random.default_rng(3).random((rows, length)).astype(np.float32)
    level = np.asarray(levels(jnp.asarray(u), w))
    # The formula of the module, term by term.
    place = (length - 0.5 - np.arange(length)) / length
    x = (1 - w) * u.astype(np.float64) + w * place
    terms = [np.clip((x - w * c) / (1 - w), 0, 1) for c in place]
    np.testing.assert_allclose(level, np.mean(terms, axis=0), atol=1e-5)
    # Of a whole row: uniform, so that the time means what it meant in training.
    share = np.bincount((level * 10).astype(int).clip(0, 9).ravel(), minlength=10) / level.size
    assert (np.abs(share - 0.1) < 4 * np.sqrt(0.1 * 0.9 / level.size)).all()
    # From left to right on average, and strictly from l / (l + 1) on.
    assert (np.diff(level.mean(0)) < -0.02).all()
    assert (np.diff(level, axis=1) < 0).all() == (w >= length / (length + 1))


@pytest.mark.slow
def test_left_first_is_plain_at_0_and_keeps_the_distribution(key):
    u = jnp.asarray(np.random.default_rng(4).random((3, 4)), jnp.float32)
    np.testing.assert_array_equal(levels(u, 0.0), u)
    np.testing.assert_allclose(levels(u, 1e-6), u, atol=1e-5)
    rows = 20_000
    for left_first in (0.4, 0.95):
        samples = sample(key, rows, FirstHitting(left_first=left_first))
        assert distance(samples.tokens, P_DATA) < 2 * noise_floor(P_DATA, rows)


@pytest.mark.slow
def test_left_first_orders_the_reveals(key):
    """The tokens are the number of masks in the row when they are drawn."""
    length, rows = 6, 2000
    found = {
        w: np.asarray(
            recorded(
                rows,
                length,
                lambda inputs: (inputs.tokens == length + 1).sum(-1),
                length,
                sampler=FirstHitting(left_first=w),
                key=key,
            ).tokens
        )
        for w in (0.2, 0.9)
    }
    assert (np.diff(found[0.2].mean(0)) < 0).all() and found[0.2].std(0).min() > 0.5
    assert (found[0.9] == np.arange(length, 0, -1)).all()


@pytest.mark.parametrize(
    "setting",
    [
        dict(per_call=0),
        dict(left_first=-0.1),
        dict(left_first=1.0),
        dict(left_first=float("nan")),
        dict(temperature=-1.0),
    ],
)
def test_settings_out_of_range_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=name):
        FirstHitting(**setting)
    with pytest.raises(ValueError, match=name):
        replace(FirstHitting(), **setting)


class Bare(Schedule):
    """1 - t, without its inverse."""

    def alpha(self, t, x_0=None):
        return 1 - t


def test_what_it_cannot_do_is_said():
    sampler, subs = FirstHitting(), PARTS["parameterization"]
    assert not issubclass(Uniform, sampler.processes)
    assert sampler.incompatibility(PARTS["process"], subs) is None
    assert "a rate for each" in sampler.incompatibility(Masked(schedule=LearnedPolynomial()), subs)
    assert "Bare has no inverse" in sampler.incompatibility(Masked(schedule=Bare()), subs)
