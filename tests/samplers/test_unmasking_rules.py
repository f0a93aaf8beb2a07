"""The rules of parallel decoding, each against a slow one written from its definition."""

import math
from dataclasses import fields, replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.keys import by_row
from mdlm.samplers.unmasking_rules import (
    EntropyBound,
    Expected,
    Factor,
    FixedCount,
    MaskGIT,
    Share,
    Threshold,
    Turn,
)

ROWS, LENGTH = 300, 9


def wanted(rule, score, is_open, total, step):
    """The positions of one row that the rule keeps, as a set."""
    order = sorted(np.flatnonzero(is_open), key=lambda i: (-score[i], i))
    if not order:
        return set()
    c = [score[i] for i in order]
    n = 1
    if isinstance(rule, FixedCount):
        n = rule.per_call
    elif isinstance(rule, Share):
        base, rest = divmod(total, rule.steps)
        n = [base + 1] * rest + [base] * rule.steps
        n = n[step]
    elif isinstance(rule, Expected):
        n = expected(rule, total, len(order), step)
    elif isinstance(rule, Threshold):
        return set(order[: rule.least]) | {i for i in order if score[i] > rule.tau}
    elif isinstance(rule, Factor):
        fits = [n for n in range(1, len(c) + 1) if (n + 1) * (1 - c[n - 1]) < rule.factor]
        n = max(fits, default=1)
    elif isinstance(rule, EntropyBound):
        n = 0
        while n < len(c) and sum(-x for x in c[:n]) <= rule.gamma:
            n += 1
    elif isinstance(rule, MaskGIT):
        left = math.floor(total * math.cos(math.pi / 2 * (step + 1) / rule.steps) + 1e-9)
        n = len(order) - left
    return set(order[: max(n, 1)])


def expected(rule, total, left, call):
    """The count at the step of this call: the first steps may write none of `total` positions."""
    t = [1 - Fraction(i, rule.steps) * (1 - Fraction(str(rule.eps))) for i in range(rule.steps + 1)]
    writes = [math.floor(total * (1 - s / t)) > 0 for t, s in zip(t, t[1:], strict=False)]
    step = (writes.index(True) if True in writes else rule.steps - 1) + call
    return left if step >= rule.steps - 1 else math.floor(left * (1 - t[step + 1] / t[step]))


def cases(seed, rounded, entropy):
    """Scores, open positions (none in row 0, one in row 1, all in row 2), and turns."""
    rng = np.random.default_rng(seed)
    score = rng.random((ROWS, LENGTH)) ** rng.choice([0.05, 0.3, 1.0], (ROWS, 1))
    if rounded:
        score = np.round(score, 1)
    score = (-2 * (1 - score) if entropy else score).astype(np.float32)
    is_open = rng.random((ROWS, LENGTH)) < rng.random((ROWS, 1))
    is_open[0], is_open[1], is_open[2] = False, np.arange(LENGTH) == 4, True
    step = rng.integers(0, 4, ROWS)
    total = is_open.sum(-1) + rng.integers(0, 5, ROWS)
    return score, is_open, total, step


def turn(total, step, key):
    each = lambda x: jnp.asarray(x, jnp.int32)[:, None]
    return Turn(total=each(total), step=each(step), keys=by_row(key, jnp.arange(len(total))))


RULES = [
    FixedCount(),
    FixedCount(per_call=3),
    FixedCount(per_call=50),
    Share(steps=4),
    Share(steps=11),
    Expected(steps=4),
    Expected(steps=7, eps=0.001),
    Expected(steps=11, eps=0.3),
    Threshold(tau=0.0),
    Threshold(tau=0.7321, least=3),
    Threshold(tau=0.7321),
    Threshold(tau=1.5),
    Factor(factor=0.03131),
    Factor(factor=0.9131),
    Factor(factor=2.4131),
    EntropyBound(gamma=0.0),
    EntropyBound(gamma=0.5131),
    EntropyBound(gamma=3.3131),
    EntropyBound(gamma=float("inf")),
    MaskGIT(steps=4, temperature=0.0),
    MaskGIT(steps=6, temperature=0.0),
]


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_keep_what_their_definitions_say(key, rule, rounded):
    score, is_open, total, step = cases(5, rounded, isinstance(rule, EntropyBound))
    select = jax.jit(rule.select)
    found = np.asarray(select(jnp.asarray(score), jnp.asarray(is_open), turn(total, step, key)))
    for row in range(ROWS):
        expected = wanted(rule, score[row].astype(float), is_open[row], total[row], step[row])
        assert set(np.flatnonzero(found[row])) == expected, (row, score[row], is_open[row])
    assert (found <= is_open).all()
    assert (found.any(-1) == is_open.any(-1)).all()


def test_noised_orders_keep_open_positions_too(key):
    """Also where a confidence is 0, whose logarithm is that of a position that is not open."""
    score, is_open, total, step = cases(6, True, False)
    for temperature in (0.0, 4.5):
        rule = MaskGIT(steps=4, temperature=temperature)
        for given in (score, np.zeros_like(score)):
            found = np.asarray(
                rule.select(jnp.asarray(given), jnp.asarray(is_open), turn(total, step, key))
            )
            left = np.floor(total * np.cos(np.pi / 2 * (step + 1) / 4) + 1e-9)
            opened = is_open.sum(-1)
            count = np.where(opened > 0, np.maximum(opened - left, 1), 0)
            assert (found.sum(-1) == count).all()
            assert (found <= is_open).all()


def test_maskgit_noise_is_gumbel_and_falls_with_the_steps(key):
    """Of two positions the first comes first with probability 1 / (1 + (c_2 / c_1)^(1 / T))."""
    rows, rule = 20_000, MaskGIT(steps=4, temperature=2.0)
    score = jnp.broadcast_to(jnp.asarray([0.8, 0.1, 0.5], jnp.float32), (rows, 3))
    is_open = jnp.broadcast_to(jnp.asarray([True, True, False]), (rows, 3))
    for step, total in ((0, 1), (2, 2)):  # cos(pi / 8) < 1, 2 cos(3 pi / 8) < 1, none left
        counted = rule.select(score, is_open, turn([total] * rows, [step] * rows, key))
        assert (np.asarray(counted).sum(-1) == 2).all()
    for step, total in ((0, 2), (1, 2), (2, 3)):
        found = np.asarray(rule.select(score, is_open, turn([total] * rows, [step] * rows, key)))
        assert (found.sum(-1) == 1).all()
        temperature = 2.0 * (1 - (step + 1) / 4)
        p = 1 / (1 + (0.1 / 0.8) ** (1 / temperature))
        assert abs(found[:, 0].mean() - p) < 4 * np.sqrt(p * (1 - p) / rows)


def test_rules_that_are_one_at_their_limits(key):
    """One position with each call: a threshold that nothing passes, no factor, no entropy."""
    score, is_open, total, step = map(jnp.asarray, cases(7, False, False))
    of = lambda rule, score: np.asarray(rule.select(score, is_open, turn(total, step, key)))
    one = of(FixedCount(), score)
    assert (one.sum(-1) == np.asarray(is_open).any(-1)).all()
    for rule in (Threshold(tau=1.0001), Factor(factor=1e-9), Share(steps=10**6)):
        np.testing.assert_array_equal(of(rule, score), one)
    np.testing.assert_array_equal(of(EntropyBound(gamma=0.0), score - 1.5), one)
    everything = np.asarray(is_open)
    for rule in (Share(steps=1), MaskGIT(steps=1), FixedCount(per_call=LENGTH)):
        np.testing.assert_array_equal(of(rule, score), everything)


def test_equal_scores(key):
    """Fast-dLLM at confidences that are all c: all or the left one; n < f / (1 - c) - 1."""
    is_open = jnp.ones((1, LENGTH), bool)
    at = turn([LENGTH], [0], key)
    score = jnp.full((1, LENGTH), 0.75)  # exact in binary
    count = lambda rule: int(rule.select(score, is_open, at).sum())
    assert count(Threshold(tau=0.74)) == LENGTH
    for rule in (Threshold(tau=0.75), Threshold(tau=0.9), FixedCount(), Factor(factor=0.5)):
        assert np.flatnonzero(rule.select(score, is_open, at)[0]).tolist() == [0]
    assert count(Factor(factor=1.0)) == 2  # 3 / 4 < 1, and 4 / 4 is not
    assert count(Factor(factor=1.01)) == 3
    entropy = jnp.full((1, LENGTH), -0.25)
    assert int(EntropyBound(gamma=0.5).select(entropy, is_open, at).sum()) == 3


@pytest.mark.parametrize("total", [1, 3, 7, 16])
@pytest.mark.parametrize("steps", [1, 3, 5, 16])
def test_shares_are_lladas(key, total, steps):
    """Call after call: floor(m / S) positions each, the first m mod S of them one more."""
    is_open, counts = jnp.arange(16)[None] < total, []
    for step in range(steps):
        rule, score = Share(steps=steps), jnp.zeros((1, 16))
        found = rule.select(score, is_open, turn([total], [step], key))
        counts.append(int(found.sum()))
        is_open = is_open & ~found
    full, rest = divmod(total, steps)
    assert counts == [full + 1] * rest + [full] * (steps - rest)


@pytest.mark.parametrize("eps", [0.0, 0.001, 0.2])
@pytest.mark.parametrize("steps", [1, 3, 8, 12])
def test_expected_counts_are_dreams_without_the_empty_calls(key, steps, eps):
    """int(n (1 - t[i + 1] / t[i])) of the n masks left, on a grid from 1 to eps, then the rest."""
    t = [1 - Fraction(i, steps) * (1 - Fraction(str(eps))) for i in range(steps + 1)]
    totals = np.arange(1, 17)
    is_open, counts = jnp.arange(16)[None] < totals[:, None], []
    select = jax.jit(Expected(steps=steps, eps=eps).select)
    for call in range(steps):
        found = select(jnp.zeros((16, 16)), is_open, turn(totals, [call] * 16, key))
        counts.append(np.asarray(found.sum(-1)))
        is_open = is_open & ~found
    assert not is_open.any()
    for total, found in zip(totals.tolist(), np.stack(counts, axis=1), strict=True):
        left, due = total, []
        for i in range(steps):
            n = left if i == steps - 1 else math.floor(left * (1 - t[i + 1] / t[i]))
            left, due = left - n, due + [n]
        assert [n for n in found if n > 0] == [n for n in due if n > 0]


@pytest.mark.parametrize(
    "wrong",
    [
        (FixedCount, dict(per_call=0)),
        (Share, dict(steps=0)),
        (Expected, dict(steps=0)),
        (Expected, dict(steps=4, eps=-0.1)),
        (Expected, dict(steps=4, eps=1.0)),
        (Threshold, dict(tau=-0.1)),
        (Threshold, dict(least=0)),
        (Threshold, dict(tau=float("nan"))),
        (Factor, dict(factor=0.0)),
        (Factor, dict(factor=float("nan"))),
        (EntropyBound, dict(gamma=-0.1)),
        (EntropyBound, dict(gamma=float("nan"))),
        (MaskGIT, dict(steps=0)),
        (MaskGIT, dict(steps=4, temperature=-1.0)),
        (MaskGIT, dict(steps=4, temperature=float("inf"))),
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    rule, setting = wrong
    name = list(setting)[-1]
    with pytest.raises(ValueError, match=f"{name}="):
        rule(**setting)
    needed = {field.name: 1 for field in fields(rule) if field.name == "steps"}
    with pytest.raises(ValueError, match=f"{name}="):
        replace(rule(**needed), **setting)
