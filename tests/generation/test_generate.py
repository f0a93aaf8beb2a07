"""The sampling loop and the ancestral sampler, against distributions that are known exactly."""

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
    noise_floor,
    posterior,
    sample,
)

from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.generation.prompts import check_prompt
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.base import CHUNK
from mdlm.samplers.loop import generate
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.schedules.md4 import OneMinusSine
from mdlm.types import DenseLogits, Prediction, Vocab


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
def test_samples_tend_to_the_distribution_as_steps_grow(key, schedule):
    rows = 8_000
    process = Masked(schedule=schedule).with_vocab(VOCAB)
    off = [
        distance(sample(key, rows, Ancestral(steps=steps), process=process).tokens, P_DATA)
        for steps in (1, 8, 64)
    ]
    # Drawn all at once, the tokens are independent: the product of the distribution's marginals.
    marginals = np.stack([P_DATA @ (SEQUENCES == v) for v in range(SYMBOLS)])
    product = np.prod([marginals[SEQUENCES[:, i], i] for i in range(LENGTH)], axis=0)
    assert off[0] == pytest.approx(0.5 * np.abs(product - P_DATA).sum(), abs=0.015)
    assert off[0] > 3 * off[1] > 4 * off[2]
    # What is left at 64 steps: pairs of tokens revealed together, a few in a hundred rows.
    assert off[2] < 2 * noise_floor(P_DATA, rows) + 0.02


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), OneMinusSine(eps=0.01)])
def test_each_step_reveals_its_share(key, schedule, grid):
    """The tokens of this network are the steps at which they are revealed."""
    rows, length, steps = 500, 16, 5
    vocab = Vocab(size=steps + 2, mask_id=steps + 1)

    def denoise(inputs, *, key=None):
        u = 2 / np.pi * jnp.arcsin(inputs.t) if grid == "cosine" else inputs.t
        step = jnp.round(steps * (1 - u)).astype(jnp.int32)
        hot = jnp.where(jnp.arange(vocab.size)[None, None] == step[..., None], 0.0, -jnp.inf)
        return DenseLogits(jnp.broadcast_to(hot, (*inputs.tokens.shape, vocab.size)))

    revealed_at = sample(
        key,
        rows,
        Ancestral(steps=steps, grid=grid),
        tokens=np.zeros((1, length), np.int32),
        is_fixed=np.zeros((1, length), bool),
        denoise=denoise,
        process=Masked(schedule=schedule).with_vocab(vocab),
        parameterization=Subs().with_vocab(vocab),
    ).tokens
    times = jnp.linspace(1, 0, steps + 1)
    if grid == "cosine":
        times = jnp.sin(np.pi / 2 * times)
    noised = schedule.one_minus_alpha(times)
    p = np.asarray(schedule.alpha_gap(times[1:], times[:-1]) / noised[0], np.float64)
    p = np.append(p, noised[-1] / noised[0])  # the last: what is still masked at t = 0
    assert p.sum() == pytest.approx(1, abs=1e-5)
    share = np.bincount(np.asarray(revealed_at).ravel(), minlength=steps + 1) / (rows * length)
    assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / (rows * length)) + 1e-6).all()


def test_infilling_follows_the_conditional_distribution(key):
    rows = 8_000
    tokens, is_fixed = np.array([[7, 2, 7]]), np.array([[False, True, False]])
    samples = sample(key, rows, Ancestral(steps=128), tokens=tokens, is_fixed=is_fixed)
    conditional = P_DATA * (SEQUENCES[:, 1] == 2)
    conditional /= conditional.sum()
    assert distance(samples.tokens, conditional) < 2 * noise_floor(conditional, rows) + 0.01


def test_prompts_stay_and_no_mask_is_left(key):
    rng = np.random.default_rng(1)
    for steps in (1, 7):
        tokens, is_fixed = rng.integers(0, SYMBOLS, (64, LENGTH)), rng.random((64, LENGTH)) < 0.4
        samples = np.asarray(
            sample(key, 64, Ancestral(steps=steps), tokens=tokens, is_fixed=is_fixed).tokens
        )
        assert (samples[is_fixed] == tokens[is_fixed]).all()
        assert (samples < SYMBOLS).all() and (samples >= 0).all()


def test_padding_keeps_its_token_and_the_network_hears_of_it(key):
    seen = {}

    def denoise(inputs, *, key=None):
        seen.update(is_valid=inputs.is_valid, positions=inputs.positions)
        return posterior(inputs)

    is_valid = np.array([[True, True, False], [True, True, True]])
    positions = np.array([[5, 6, 7], [1, 2, 3]])
    samples = generate(
        by_row(key, jnp.arange(2)),
        jnp.full((2, LENGTH), MASK),  # even a mask, as padding, is nobody's business
        jnp.zeros((2, LENGTH), bool),
        sampler=Ancestral(steps=3),
        diffusion=Diffusion(denoise=denoise, **PARTS),
        is_valid=jnp.asarray(is_valid),
        positions=jnp.asarray(positions),
    )
    assert ((np.asarray(samples.tokens) == MASK) == ~is_valid).all()
    assert seen["is_valid"].shape == is_valid.shape and seen["positions"].shape == positions.shape


@pytest.mark.parametrize("last", ["draw", "argmax"])
def test_finish_resolves_what_the_schedule_leaves_masked(key, last):
    """At alpha(0) = 0.6 four tokens in ten are still masked after the last step."""

    class Unfinished(LogLinear):
        def alpha(self, t, x_0=None):
            return 0.6 * (1 - t)

        def one_minus_alpha(self, t, x_0=None):
            return 1 - self.alpha(t)

        def alpha_gap(self, s, t, x_0=None):
            return 0.6 * (t - s)

    def denoise(inputs, *, key=None):
        """Independent tokens: symbol 1 with probability one half."""
        return DenseLogits(jnp.broadcast_to(log_p, (*inputs.tokens.shape, VOCAB.size)))

    log_p = jnp.log(jnp.asarray([[[0.3, 0.5, 0.2, 0.0]]]))
    rows, steps = 4000, 16
    process = Masked(schedule=Unfinished()).with_vocab(VOCAB)
    sampler = Ancestral(steps=steps, last=last)
    samples = sample(key, rows, sampler, process=process, denoise=denoise)
    assert (np.asarray(samples.tokens) != MASK).all()
    assert int(samples.nfe) == LENGTH  # of the row whose tokens all come apart
    expected = 0.6 * 0.5 + 0.4 * (0.5 if last == "draw" else 1.0)
    share = (np.asarray(samples.tokens) == 1).mean()
    assert abs(share - expected) < 4 * 0.5 / np.sqrt(rows * LENGTH)


def test_a_row_does_not_depend_on_the_rows_beside_it(key):
    rows, length = 70, 9  # more open positions than one chunk holds
    vocab = Vocab(size=50, mask_id=49)
    table = jax.random.normal(jax.random.key(5), (50, 50)) * 2

    def denoise(inputs, *, key=None):
        """Looks at the left neighbour: what is drawn depends on what was drawn."""
        return DenseLogits(table[jnp.roll(inputs.tokens, 1, axis=1)])

    sampler = Ancestral(steps=4, top_k=20, top_p=0.95, temperature=1.1)
    parts = dict(process=Masked().with_vocab(vocab), parameterization=Subs().with_vocab(vocab))
    run = jax.jit(
        lambda keys, tokens, is_fixed: generate(
            keys, tokens, is_fixed, sampler=sampler, diffusion=Diffusion(denoise=denoise, **parts)
        )
    )
    rng = np.random.default_rng(2)
    keys = by_row(key, jnp.arange(rows))
    tokens, is_fixed = rng.integers(0, 49, (rows, length)), rng.random((rows, length)) < 0.1
    assert (~is_fixed).sum() / 4 > CHUNK
    together = np.asarray(run(keys, tokens, is_fixed).tokens)
    for row in (0, 17, 69):
        part = slice(row, row + 1)
        alone = run(keys[part], tokens[part], is_fixed[part]).tokens
        assert (np.asarray(alone)[0] == together[row]).all()
    assert len({tuple(row) for row in together}) == rows


def test_nfe_is_the_number_of_steps_that_reveal(key):
    """One row: the network is called N (1 - (1 - 1/N)^L) times in the mean, alpha = 1 - t."""
    runs, steps, length = 2000, 8, 6

    def uniform_distribution(inputs, *, key=None):
        return DenseLogits(jnp.zeros((*inputs.tokens.shape, VOCAB.size)))

    def one(key):
        return generate(
            key[None],
            jnp.zeros((1, length), jnp.int32),
            jnp.zeros((1, length), bool),
            sampler=Ancestral(steps=steps),
            diffusion=Diffusion(denoise=uniform_distribution, **PARTS),
        ).nfe

    called = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(by_row(key, jnp.arange(runs))))
    expected = steps * (1 - (1 - 1 / steps) ** length)
    assert abs(called.mean() - expected) < 4 * called.std() / np.sqrt(runs)
    assert called.max() <= min(steps, length) and called.min() >= 1


def test_nfe_counts_real_calls(key):
    calls = []

    def counted(inputs, *, key=None):
        jax.debug.callback(lambda t: calls.append(float(t)), inputs.t[0, 0])
        return posterior(inputs)

    samples = sample(key, 1, Ancestral(steps=500), denoise=counted)
    jax.effects_barrier()
    assert len(calls) == int(samples.nfe) <= LENGTH
    assert calls == sorted(calls, reverse=True)  # each at the time t of its step
    nothing = sample(
        key, 2, Ancestral(steps=5), tokens=np.ones((2, 3), int), is_fixed=np.ones((2, 3), bool)
    )
    assert int(nothing.nfe) == 0


class SameDistribution(Prediction):
    """One distribution for every position, so that a large vocabulary takes no memory."""

    def __init__(self, row):
        self.row = row

    def logits(self, at=None):
        if at is None:
            raise AssertionError("logits of all positions are never to be asked for")
        assert at.shape[0] <= CHUNK
        return jnp.broadcast_to(self.row[None], (at.shape[0], self.row.shape[0]))

    def reduce_rows(self, fn, rows, weight, shared=None):
        raise AssertionError("not used in sampling")


def test_many_steps_do_not_thin_the_tail_of_the_distribution(key):
    """Independent tokens: entropy and rare tokens are as given, however many the steps."""
    size, rows, length = 8193, 128, 32
    vocab = Vocab(size=size, mask_id=size - 1)
    p = 1 / np.arange(1, size)
    p /= p.sum()
    zipf = jnp.asarray(np.append(np.log(p), 0.0), jnp.float32)
    shape = (1, length)
    samples = sample(
        key,
        rows,
        Ancestral(steps=256),
        tokens=np.zeros(shape, np.int32),
        is_fixed=np.zeros(shape, bool),
        denoise=lambda inputs, key=None: SameDistribution(zipf),
        process=Masked().with_vocab(vocab),
        parameterization=Subs().with_vocab(vocab),
    )
    tokens = np.asarray(samples.tokens)
    surprise, entropy = -np.log(p[tokens]), -(p * np.log(p)).sum()
    assert abs(surprise.mean() - entropy) < 4 * surprise.std() / np.sqrt(tokens.size)
    tail = p[3000:].sum()
    assert abs((tokens >= 3000).mean() - tail) < 4 * np.sqrt(tail * (1 - tail) / tokens.size)


def test_generate_compiles_once(key):
    traces = []

    @jax.jit
    def run(keys, tokens, is_fixed):
        traces.append(1)
        sampler = Ancestral(steps=4)
        return generate(
            keys, tokens, is_fixed, sampler=sampler, diffusion=Diffusion(denoise=posterior, **PARTS)
        )

    for seed in range(3):
        keys = by_row(jax.random.fold_in(key, seed), jnp.arange(2))
        run(keys, np.full((2, LENGTH), seed % 2), np.eye(2, LENGTH, dtype=bool))
    assert len(traces) == 1


def test_temperature_zero_draws_nothing(key):
    greedy = Ancestral(steps=1, temperature=0.0)
    tokens = np.asarray(sample(key, 50, greedy).tokens)
    assert (tokens == tokens[0]).all()
    marginals = np.stack([P_DATA @ (SEQUENCES == v) for v in range(SYMBOLS)])
    assert (tokens[0] == marginals.argmax(0)).all()


@pytest.mark.parametrize(
    "setting",
    [
        dict(steps=0),
        dict(temperature=-0.1),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(top_k=-1),
        dict(last="best"),
        dict(grid="linear"),
        dict(temperature=float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(setting):
    (name,) = setting
    # TypeError: the annotations, which tests check, may notice first.
    with pytest.raises((ValueError, TypeError), match=name):
        Ancestral(**setting)
    with pytest.raises((ValueError, TypeError), match=name):
        replace(Ancestral(), **setting)


def test_prompts_are_checked():
    is_fixed = np.array([[True, True, False]])
    check_prompt(np.array([[0, 2, MASK]]), is_fixed, VOCAB)
    with pytest.raises(InputError, match="token 3 at position 1 of prompt 0 is the mask"):
        check_prompt(np.array([[0, MASK, 0]]), is_fixed, VOCAB)
    with pytest.raises(InputError, match="token 4 at position 0 of prompt 0 is outside"):
        check_prompt(np.array([[4, 0, 0]]), is_fixed, VOCAB)
    with pytest.raises(InputError, match="outside"):
        check_prompt(np.array([[-1, 0, 0]]), is_fixed, VOCAB)
