"""Samplers with the exact posterior of a hidden Markov model as network."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.config.component_text import from_text
from mdlm.evals.oracles import Enumerated, HiddenMarkov, sample
from mdlm.samplers import Sampler
from mdlm.types import NetInput

ROWS = 4000
MARKOV = HiddenMarkov(length=10, symbols=4, states=3)


def probability(data, tokens):
    """p(tokens), by the forward recursion in float64."""
    first, moves, emits = data.model
    state = first * emits[:, tokens[0]]
    for token in tokens[1:]:
        state = (state @ moves) * emits[:, token]
    return state.sum()


def test_the_network_is_the_posterior():
    data = HiddenMarkov(length=4, symbols=3, states=2, seed=3)
    sequences = np.array(list(itertools.product(range(3), repeat=4)))
    p = np.array([probability(data, row) for row in sequences])
    assert p.sum() == pytest.approx(1)
    np.testing.assert_allclose(data.log_p(sequences), np.log(p), atol=1e-9)
    noised = np.array(list(itertools.product(range(4), repeat=4)))[::7]
    answers = np.exp(data.denoise(NetInput(tokens=jnp.asarray(noised))).logits())
    for z, answer in zip(noised, answers, strict=True):
        weight = p * ((sequences == z) | (z == 3)).all(-1)
        for place in np.flatnonzero(z == 3):
            truth = np.bincount(sequences[:, place], weight, minlength=3) / weight.sum()
            np.testing.assert_allclose(answer[place, :3], truth, atol=1e-5)
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (sequences[:, 1], sequences[:, 2]), p)
    np.testing.assert_allclose(data.pairs, pairs, atol=1e-12)


@pytest.mark.parametrize("data", [MARKOV, Enumerated()], ids=["Markov", "enumerated"])
def test_distances_are_measured_by_rows_of_the_distribution(data):
    right, flat = data.draw(ROWS, seed=1), np.zeros((ROWS, data.length), int)
    assert data.distance(right) < 0.05 < 0.5 < data.distance(flat)


@pytest.mark.parametrize(
    "text",
    [
        "FirstHitting()",
        "FirstHitting(left_first=0.7)",
        "Ancestral(steps=64)",
        "Reverse(steps=64)",
        "Tweedie(steps=64)",
        "Euler(steps=64)",
        "Parallel(order='left')",
        "Parallel(order='entropy')",
        "Remask(steps=64, eta=0.04)",
        "Psi(steps=64, kappa=0.9)",
        "PathPlanning(steps=10, eta=0.0, score='random')",
    ],
)
def test_samples_are_of_the_distribution(text):
    """What is exact, or close to its limit: within a hundredth of what its own rows are."""
    own = max(MARKOV.distance(MARKOV.draw(ROWS, seed=seed)) for seed in range(3))
    found = MARKOV.distance(np.asarray(sample(MARKOV, from_text(text, Sampler), ROWS).tokens))
    assert found < own + 0.01


@pytest.mark.parametrize(
    "text",
    [
        "Ancestral(steps=1)",
        "FirstHitting(per_call=10)",
        "Parallel(order='entropy', rule=FixedCount(per_call=10))",
    ],
)
def test_tokens_drawn_at_once_are_independent(text):
    marginal = MARKOV.pairs.sum(1)
    off = 0.5 * np.abs(np.outer(marginal, marginal) - MARKOV.pairs).sum()
    found = MARKOV.distance(np.asarray(sample(MARKOV, from_text(text, Sampler), ROWS).tokens))
    assert found == pytest.approx(off, abs=0.02) and off > 0.1
