"""Parallel decoding, against distributions that are known exactly and a decoder without arrays."""

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
from mdlm.keys import by_row
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.loop import Loop, generate
from mdlm.samplers.parallel import Parallel, margin, negative_entropy
from mdlm.samplers.unmasking_rules import (
    EntropyBound,
    Factor,
    FixedCount,
    MaskGIT,
    Share,
    Threshold,
)
from mdlm.schedules.base import Schedule
from mdlm.schedules.closed_form import Cosine, LogLinear
from mdlm.schedules.per_token import LearnedPolynomial
from mdlm.types import DenseLogits, Vocab


@pytest.mark.parametrize("order", ["random", "left", "margin", "entropy"])
def test_one_by_one_orders_that_do_not_see_the_token_draw_the_distribution(key, order):
    rows = 20_000
    samples = sample(key, rows, Parallel(order=order))
    assert distance(samples.tokens, P_DATA) < 2 * noise_floor(P_DATA, rows)
    assert int(samples.nfe) == LENGTH


@pytest.mark.slow
def test_by_confidence_samples_are_likelier_than_the_distribution(key):
    rows = 20_000
    samples = sample(key, rows, Parallel(order="confidence"))
    assert distance(samples.tokens, P_DATA) > 5 * noise_floor(P_DATA, rows)
    place = np.asarray(samples.tokens) @ SYMBOLS ** np.arange(LENGTH - 1, -1, -1)
    drawn = np.log(P_DATA)[place]
    assert drawn.mean() > P_DATA @ np.log(P_DATA) + 4 * drawn.std() / np.sqrt(rows)


def test_all_at_once_draws_the_product_of_the_marginals(key):
    rows = 20_000
    samples = sample(key, rows, Parallel(rule=Threshold(tau=0.0)))
    marginals = np.stack([P_DATA @ (SEQUENCES == v) for v in range(SYMBOLS)])
    product = np.prod([marginals[SEQUENCES[:, i], i] for i in range(LENGTH)], axis=0)
    assert distance(samples.tokens, product) < 2 * noise_floor(product, rows)
    assert int(samples.nfe) == 1


def greedy(sequence, order, is_chosen):
    """Decodes one sequence of the enumerated distribution: the likeliest token of each place."""
    sequence, calls = list(sequence), 0
    while MASK in sequence:
        fits = np.all([(s == SEQUENCES[:, i]) | (s == MASK) for i, s in enumerate(sequence)], 0)
        found = []
        for i in [i for i, s in enumerate(sequence) if s == MASK]:
            p = np.array([(P_DATA * fits * (SEQUENCES[:, i] == v)).sum() for v in range(SYMBOLS)])
            p /= p.sum()
            score = {
                "confidence": p.max(),
                "margin": np.sort(p)[-1] - np.sort(p)[-2],
                "entropy": (p * np.log(p)).sum(),
            }[order]
            found.append((-score, i, p.argmax()))
        found.sort()
        for n, (score, i, token) in enumerate(found):
            if n == 0 or is_chosen(n + 1, -score, [-score for score, _, _ in found[:n]]):
                sequence[i] = token
        calls += 1
    return sequence, calls


@pytest.mark.parametrize(
    "order, rule, is_chosen",
    [
        ("confidence", FixedCount(), lambda n, c, before: False),
        ("confidence", Threshold(tau=0.6), lambda n, c, before: c > 0.6),
        ("confidence", Factor(factor=1.3), lambda n, c, before: (n + 1) * (1 - c) < 1.3),
        ("margin", FixedCount(per_call=2), lambda n, c, before: n <= 2),
        ("entropy", EntropyBound(gamma=0.7), lambda n, c, before: -sum(before) <= 0.7),
    ],
)
def test_temperature_0_is_greedy_decoding(key, order, rule, is_chosen):
    """From every sequence of symbols and masks."""
    prompts = np.array(np.meshgrid(*[range(SYMBOLS + 1)] * LENGTH)).reshape(LENGTH, -1).T
    sampler = Parallel(order=order, rule=rule, temperature=0.0)
    samples = sample(key, len(prompts), sampler, tokens=prompts, is_fixed=prompts != MASK)
    decoded = [greedy(prompt, order, is_chosen) for prompt in prompts]
    np.testing.assert_array_equal(samples.tokens, [sequence for sequence, _ in decoded])
    assert int(samples.nfe) == max(calls for _, calls in decoded)


def test_scores_of_a_distribution():
    p = np.array([[0.5, 0.3, 0.2, 0.0], [0.4, 0.4, 0.1, 0.1], [0.0, 0.0, 1.0, 0.0]], np.float32)
    log_p, token = jnp.log(jnp.asarray(p)), jnp.zeros(3, jnp.int32)
    np.testing.assert_allclose(margin(log_p, token), [0.2, 0.0, 1.0], atol=1e-6)
    plain = [sum(x * np.log(x) for x in row if x > 0) for row in p]
    np.testing.assert_allclose(negative_entropy(log_p, token), plain, atol=1e-6)
    assert (np.asarray(negative_entropy(log_p, token)) <= 0).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(), [1, 0, 2]),
        (dict(priority="processed"), [1, 0, 2]),  # at temperature 0 no token is certain
        (dict(banned=(2,)), [0, 2, 1]),
        (dict(banned=(2,), priority="processed"), [1, 0, 2]),
        (dict(top_k=2), [1, 0, 2]),
        (dict(top_k=2, priority="processed"), [0, 2, 1]),
        (dict(deferred=(2,)), [0, 2, 1]),
        (dict(deferred=(0, 1)), [1, 0, 2]),
        (dict(order="margin", priority="processed", top_k=1), [0, 1, 2]),  # all certain
        (dict(order="margin", deferred=(2,)), [1, 0, 2]),
    ],
)
def test_priorities_are_those_of_the_chosen_distribution(key, settings, expected):
    """The order in which three positions are written, each of its own distribution."""
    p = jnp.asarray([[0.50, 0.30, 0.20], [0.05, 0.40, 0.55], [0.45, 0.30, 0.25]])
    logits = jnp.pad(jnp.log(p), ((0, 0), (0, 1)))[None]
    sampler = Parallel(temperature=0.0, **settings)
    network = Diffusion(denoise=lambda inputs, key=None: DenseLogits(logits), **PARTS)
    loop = Loop(sampler=sampler, diffusion=network)

    @jax.jit
    def written(keys):
        def advance(state, _):
            after = loop.advance(state)
            return after, (after.tokens != state.tokens, after.tokens)

        fresh = jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 3), bool)
        _, (is_new, tokens) = jax.lax.scan(advance, loop.begin(keys, *fresh), length=3)
        return is_new[:, 0], tokens[-1, 0]

    is_new, tokens = written(key[None])
    assert np.asarray(is_new).sum(-1).tolist() == [1, 1, 1]
    assert np.asarray(is_new).argmax(-1).tolist() == expected
    # Priorities change no token.
    assert tokens.tolist() == [0, 1 if settings.get("banned") else 2, 0]


def counted(value, largest, length, is_fixed, *, sampler, key, schedule=None):
    """Runs the sampler with a network whose token is `value(inputs)`, a number for each row. The
    prompt's tokens are -1 in what is returned."""
    vocab = Vocab(size=largest + 2, mask_id=largest + 1)

    def denoise(inputs, *, key=None):
        hot = jnp.arange(vocab.size)[None, None] == value(inputs).reshape(-1, 1, 1)
        return DenseLogits(
            jnp.broadcast_to(jnp.where(hot, 0.0, -jnp.inf), (*inputs.tokens.shape, vocab.size))
        )

    samples = sample(
        key,
        len(is_fixed),
        sampler,
        tokens=np.zeros((1, length), np.int32),
        is_fixed=is_fixed,
        denoise=denoise,
        process=Masked(schedule=schedule or LogLinear(eps=0.0)).with_vocab(vocab),
        parameterization=Subs().with_vocab(vocab),
    )
    tokens = np.asarray(samples.tokens)
    assert (tokens[is_fixed] == 0).all() and (tokens <= largest).all()
    return np.where(is_fixed, -1, tokens), int(samples.nfe)


def masks(length):
    """The token is the number of masks in the row when it is written."""
    return lambda inputs: (inputs.tokens == length + 1).sum(-1)


PROMPTS = np.arange(12)[None] < np.array([0, 2, 5, 11, 12])[:, None]


@pytest.mark.parametrize(
    "order, rule, calls",
    [
        ("random", FixedCount(per_call=3), lambda m: -(-m // 3)),
        ("left", FixedCount(), lambda m: m),
        ("entropy", Share(steps=3), lambda m: min(m, 3)),
    ],
)
def test_blocks_come_one_after_the_other(key, order, rule, calls):
    length, size = 12, 4
    sampler = Parallel(order=order, rule=rule, block_size=size)
    found, nfe = counted(masks(length), length, length, PROMPTS, sampler=sampler, key=key)
    most = 0
    for row, is_fixed in zip(found, PROMPTS, strict=True):
        written = row[~is_fixed]
        blocks = [written[i : i + size] for i in range(0, len(written), size)]
        for earlier, later in zip(blocks, blocks[1:], strict=False):
            # The last of the earlier ones was written before the first of the later ones.
            assert earlier.min() > later.max()
        for block in blocks:
            assert len(set(block)) == calls(len(block))
        most = max(most, sum(calls(len(block)) for block in blocks))
    assert nfe == most
    if order == "left":
        assert (found[0] == np.arange(length, 0, -1)).all()


@pytest.mark.slow
def test_without_blocks_all_positions_are_at_hand(key):
    sampler = Parallel(order="random", rule=FixedCount(per_call=4))
    found, nfe = counted(masks(12), 12, 12, np.zeros((200, 12), bool), sampler=sampler, key=key)
    assert nfe == 3
    first = (found == 12).mean(0)
    assert (np.abs(first - 1 / 3) < 4 * np.sqrt(2 / 9 / 200)).all()


@pytest.mark.parametrize("block_size", [None, 8])
def test_maskgit_leaves_a_cosine(key, block_size):
    steps, length = 5, 16
    sampler = Parallel(rule=MaskGIT(steps=steps), block_size=block_size)
    is_fixed = np.arange(length)[None] < np.array([0, 6])[:, None]
    found, _ = counted(masks(length), length, length, is_fixed, sampler=sampler, key=key)
    for row, fixed in zip(found, is_fixed, strict=True):
        left, expected = (~fixed).sum(), []
        size = block_size or left
        while left:
            total = min(size, left)
            after = [int(total * np.cos(np.pi / 2 * i / steps) + 1e-9) for i in range(steps + 1)]
            after[-1] = 0
            # Where the cosine falls by less than one, one is written all the same.
            here = total
            for aim in after[1:]:
                if here:
                    expected += [left - total + here] * max(here - aim, 1)
                    here = min(aim, here - 1)
            left -= total
        assert sorted(row[~fixed], reverse=True) == expected


@pytest.mark.parametrize("schedule", [LogLinear(eps=0.0), Cosine(eps=0.0)])
def test_the_time_told_is_that_of_the_share_of_masks(key, schedule):
    """1 - alpha at the times that the network is told, in twelfths, from left to right."""
    is_fixed = np.arange(12)[None] < np.array([0, 6, 8, 12])[:, None]
    found, _ = counted(
        lambda inputs: jnp.round(12 * schedule.one_minus_alpha(inputs.t)).astype(jnp.int32),
        12,
        12,
        is_fixed,
        sampler=Parallel(order="left", block_size=4),
        key=key,
        schedule=schedule,
    )
    for row, fixed in zip(found, is_fixed, strict=True):
        writable = (~fixed).sum()
        left = np.arange(writable, 0, -1)
        assert (row[~fixed] == 12 * left // max(writable, 1)).all()


@pytest.mark.parametrize(
    "sampler",
    [
        Parallel(rule=MaskGIT(steps=2)),
        Parallel(rule=Threshold(tau=0.5), block_size=2),
        Parallel(order="random", rule=FixedCount(per_call=2), temperature=0.8),
    ],
)
def test_prompts_stay_and_a_row_does_not_depend_on_the_rows_beside_it(key, sampler):
    rng, rows = np.random.default_rng(1), 40
    tokens, is_fixed = rng.integers(0, SYMBOLS, (rows, LENGTH)), rng.random((rows, LENGTH)) < 0.3
    keys = by_row(key, jnp.arange(rows))
    run = jax.jit(
        lambda *row: (
            generate(*row, sampler=sampler, diffusion=Diffusion(denoise=posterior, **PARTS)).tokens
        )
    )
    together = np.asarray(run(keys, tokens, is_fixed))
    assert (together[is_fixed] == tokens[is_fixed]).all() and (together != MASK).all()
    part = slice(20, 27)
    np.testing.assert_array_equal(run(keys[part], tokens[part], is_fixed[part]), together[part])
    assert len({tuple(row) for row in together}) > 5


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(block_size=0), "block_size=0"),
        (dict(order="best"), "order"),
        (dict(rule=Factor(), order="margin"), "must be confidence"),
        (dict(rule=EntropyBound()), "must be entropy"),
        (dict(rule=Threshold(), order="random"), "must be confidence or margin"),
        (dict(rule=MaskGIT(steps=3), order="left"), "must be confidence"),
        (dict(temperature=-1.0), "temperature"),
        (dict(priority="filtered"), "priority"),
        (dict(deferred=(-1,)), "deferred"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, said):
    # TypeError: the annotations, which tests check, may notice first.
    with pytest.raises((ValueError, TypeError), match=said):
        Parallel(**wrong)
    with pytest.raises((ValueError, TypeError), match=said):
        replace(Parallel(), **wrong)


class Bare(Schedule):
    """1 - t, without its inverse."""

    def alpha(self, t, x_0=None):
        return 1 - t


def test_what_it_cannot_do_is_said():
    sampler, subs = Parallel(), PARTS["parameterization"]
    with pytest.raises(InputError, match="deferred token 4 is outside the vocabulary of 4"):
        Parallel(deferred=(4,)).check_ids(VOCAB)
    assert not issubclass(Uniform, sampler.processes)
    assert sampler.incompatibility(Masked().with_vocab(VOCAB), subs) is None
    assert "a rate for each" in sampler.incompatibility(Masked(schedule=LearnedPolynomial()), subs)
    assert "Bare has no inverse" in sampler.incompatibility(Masked(schedule=Bare()), subs)
