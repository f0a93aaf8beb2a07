"""Preferences on an enumerated distribution: the bounds, their noise, the law that is learnt."""

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import PARTS, SEQUENCES, SYMBOLS

from mdlm.diffusion import Diffusion
from mdlm.evals.oracles import Enumerated
from mdlm.objectives.nelbo import Nelbo
from mdlm.objectives.preference import CausalPreference, Preference
from mdlm.times import IID
from mdlm.types import Batch, DenseLogits

MADE: Any = PARTS
MASK, LENGTH = SYMBOLS, SEQUENCES.shape[1]
ALL = np.array(list(itertools.product(range(SYMBOLS + 1), repeat=LENGTH)))
"""All noised rows, in the order of their digits."""


def batch_of(tokens, loss_mask=None):
    tokens = jnp.asarray(tokens, jnp.int32)
    n = len(tokens)
    return Batch(
        tokens=tokens,
        loss_mask=jnp.ones(tokens.shape, bool) if loss_mask is None else loss_mask,
        is_valid=jnp.ones(tokens.shape, bool),
        row=jnp.arange(n),
        rows=jnp.asarray(n),
    )


def diffusion_of(denoise, reference):
    made = Diffusion(denoise=denoise, **MADE)
    return replace(made, reference=Diffusion(denoise=reference, **MADE))


PAIR = np.array([[0, 2, 1], [1, 1, 0]])
PLACES = PAIR @ [9, 3, 1]
REWARD = np.random.default_rng(5).normal(size=len(SEQUENCES)) * 0.5
BETA = 1.0
BOUND = Nelbo(t_min=0.1)
"""With few large weights, so that a few thousand draws tell its variance."""


@dataclass(frozen=True)
class Tilted(Enumerated):
    """The law p_ref exp(r / beta) / Z of the reference."""

    @cached_property
    def p(self):
        law = REFERENCE.p * np.exp(REWARD / BETA)
        return law / law.sum()


REFERENCE, FAR = Enumerated(seed=1, concentration=1.0), Enumerated(seed=2, concentration=1.0)
NEAR = Tilted()


def margin(law):
    """The exact one of the pair."""
    gain = np.log(law.p[PLACES] / REFERENCE.p[PLACES])
    return gain[0] - gain[1]


def estimates(law, objective, of, draws=4000, seed=0):
    """`of` the loss terms of the pair, from draws of the noise. The networks know the true
    posteriors of their laws, so that every bound is the log-likelihood."""
    diffusion = diffusion_of(law.denoise, REFERENCE.denoise)
    one = lambda key: of(objective(key, batch_of(PAIR), diffusion))
    keys = jax.random.split(jax.random.key(seed), draws)
    return np.array(jax.jit(jax.vmap(one))(keys), np.float64)


def margins(law, objective):
    return estimates(law, objective, lambda terms: terms.scalars["margin"])


def margins_apart(law, objective):
    """With draws of the reference's own."""
    difference = lambda terms: terms.values.reshape(2, -1).sum(-1) @ jnp.array([-1.0, 1.0])
    one, other = (
        estimates(own, objective, difference, seed=i) for i, own in enumerate((law, REFERENCE))
    )
    return one - other


@pytest.mark.parametrize("law", [NEAR, pytest.param(FAR, marks=pytest.mark.slow)])
def test_the_margin_is_unbiased(law):
    """The mean of the estimates is the difference of the exact log-likelihood ratios."""
    for objective in (
        Preference(samples=4, bound=BOUND),
        Preference(samples=2, bound=Nelbo(times=IID(), importance=True)),
    ):
        found = margins(law, objective)
        error = found.std() / np.sqrt(len(found))
        assert abs(found.mean() - margin(law)) < 4 * error, (found.mean(), error)
        assert error < 0.1


@pytest.mark.slow
def test_sharing_draws_lowers_the_variance():
    """VRPO: shared times and masks against separate ones, and more samples. Where training begins,
    sharing leaves no noise at all."""
    objective = Preference(samples=4, bound=BOUND)
    shared, separate = margins(NEAR, objective).var(), margins_apart(NEAR, objective)
    assert abs(separate.mean() - margin(NEAR)) < 4 * separate.std() / np.sqrt(len(separate))
    one, many = (margins(NEAR, replace(objective, samples=n)).var() for n in (1, 8))
    print(
        f"variance: shared {shared:.3f}, separate {separate.var():.3f}; 1 {one:.3f}, 8 {many:.3f}"
    )
    assert shared < 0.1 * separate.var()
    assert many < one / 6
    terms = Preference()(
        jax.random.key(0), batch_of(PAIR), diffusion_of(REFERENCE.denoise, REFERENCE.denoise)
    )
    assert float(terms.scalars["margin"]) == 0
    assert float(terms.total) == pytest.approx(np.log(2))


def table_network(table):
    """A network that is a table: logits of each position by the whole noised row."""

    def denoise(inputs, *, key=None):
        place = inputs.tokens @ ((SYMBOLS + 1) ** jnp.arange(LENGTH)[::-1])
        return DenseLogits(table[place].reshape(*inputs.tokens.shape, SYMBOLS + 1))

    return denoise


def test_the_gradient_is_that_of_the_formula():
    """Of the loss as it is written, by automatic differentiation of the cross-entropies."""
    rng = np.random.default_rng(0)
    tables = [
        jnp.asarray(rng.normal(size=((SYMBOLS + 1) ** LENGTH, LENGTH, SYMBOLS + 1)), jnp.float32)
        for _ in range(2)
    ]
    loss_mask = jnp.asarray([[False, True, True], [False, True, True]] * 2)
    batch = batch_of(np.concatenate([PAIR, PAIR[::-1]]), loss_mask)
    objective, key = Preference(samples=3, beta=0.7), jax.random.key(3)

    def found(table):
        return objective(
            key, batch, diffusion_of(table_network(table), table_network(tables[1]))
        ).total

    def written(table):
        """With the draws that the objective makes, seen through what it asks."""
        asked = []

        def seen(inputs, *, key=None):
            asked.append(inputs)
            return table_network(table)(inputs)

        objective(key, batch, diffusion_of(seen, table_network(tables[1])))
        (inputs,) = asked
        tokens = jnp.repeat(batch.tokens, 3, axis=0)
        counts = jnp.repeat(loss_mask, 3, axis=0) & (inputs.tokens == MASK)
        _, weight = objective.bound.times_and_weights(MADE["process"].schedule, inputs.t)

        def bound(table):
            logits = table_network(table)(inputs).logits().at[..., MASK].set(-jnp.inf)
            log_p = jax.nn.log_softmax(logits)
            own = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
            return (weight * jnp.where(counts, own, 0)).reshape(4, -1).sum(1).reshape(2, 2) / 3

        gain = bound(table) - bound(tables[1])
        return -jnp.log(jax.nn.sigmoid(0.7 * (gain[:, 0] - gain[:, 1]))).sum()

    (value, one), (due, other) = (
        jax.jit(jax.value_and_grad(fn))(tables[0]) for fn in (found, written)
    )
    assert float(value) == pytest.approx(float(due), rel=1e-5)
    assert float(jnp.abs(other).max()) > 0.01
    np.testing.assert_allclose(one, other, atol=1e-5)


def preferred_pairs(rng, n):
    """Pairs of sequences, the chosen one first, drawn by sigmoid(r(a) - r(b))."""
    a, b = (rng.integers(0, len(SEQUENCES), n) for _ in range(2))
    wins = rng.random(n) < 1 / (1 + np.exp(-(REWARD[a] - REWARD[b])))
    return np.stack([np.where(wins, a, b), np.where(wins, b, a)], 1).reshape(-1)


def law_of_table(table):
    """The law of the rows that are revealed token by token in a random order: the mean over all
    orders of the product of the conditional distributions."""
    p = np.zeros(len(SEQUENCES))
    logits = np.array(table, np.float64)[..., :SYMBOLS]
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    orders = list(itertools.permutations(range(LENGTH)))
    for x, row in enumerate(SEQUENCES):
        for order in orders:
            z, own = np.full(LENGTH, MASK), 1.0
            for i in order:
                place = int(z @ ((SYMBOLS + 1) ** np.arange(LENGTH)[::-1]))
                own *= probability[place, i, row[i]]
                z[i] = row[i]
            p[x] += own / len(orders)
    return p


FITS = (SEQUENCES[None] == ALL[:, None]) | (ALL[:, None] == MASK)
"""Whether each sequence may be behind each noised one."""


def posterior_of(scores):
    """The logits of the posterior of softmax(scores) over all sequences, for all noised rows."""
    p = jnp.asarray(FITS.all(-1), jnp.float32) * jax.nn.softmax(scores)[None]
    each = jax.nn.one_hot(SEQUENCES, SYMBOLS + 1)
    return jnp.log(jnp.maximum(jnp.einsum("zx,xlv->zlv", p, each), 1e-30))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("law", 0.2), ("table", 0.25)])
def test_the_tilted_law_is_reached(kind, most):
    """DPO's optimum, p_ref exp(r / beta) / Z, from preferences that follow r alone: by a network
    that is the posterior of some law, and by one whose conditional distributions are free."""
    scores = jnp.asarray(np.log(REFERENCE.p), jnp.float32)
    table_of = posterior_of if kind == "law" else lambda table: table
    start, own = posterior_of(scores), scores if kind == "law" else posterior_of(scores)
    assert 0.5 * np.abs(law_of_table(start) - REFERENCE.p).sum() < 1e-5
    objective = Preference(beta=BETA, samples=32, bound=BOUND)
    tx = optax.adam(optax.cosine_decay_schedule(0.03, 1500))

    @jax.jit
    def step(own, state, key, tokens):
        def loss(own):
            networks = table_network(table_of(own)), table_network(start)
            terms = objective(key, batch_of(tokens), diffusion_of(*networks))
            return terms.total / terms.examples

        updates, state = tx.update(jax.grad(loss)(own), state)
        return optax.apply_updates(own, updates), state

    rng, state = np.random.default_rng(0), tx.init(own)
    for i in range(1500):
        key = jax.random.fold_in(jax.random.key(0), i)
        own, state = step(own, state, key, SEQUENCES[preferred_pairs(rng, 128)])
    found = law_of_table(table_of(own))
    before, after = (0.5 * np.abs(p - NEAR.p).sum() for p in (REFERENCE.p, found))
    print(f"{kind}: total variation to the tilted law {before:.4f} -> {after:.4f}")
    assert after < most * before


def test_causal_preferences_have_exact_likelihoods():
    """DPO: the margin is exact, the first token of a row is not scored."""
    rng = np.random.default_rng(1)
    tables = [jnp.asarray(rng.normal(size=(LENGTH, SYMBOLS + 1)), jnp.float32) for _ in range(2)]

    def network(table):
        def denoise(inputs, *, key=None):
            return DenseLogits(jnp.broadcast_to(table, (*inputs.tokens.shape, SYMBOLS + 1)))

        return denoise

    objective, diffusion = CausalPreference(beta=0.3), diffusion_of(*map(network, tables))
    terms = jax.jit(lambda key: objective(key, batch_of(PAIR), diffusion))(jax.random.key(0))
    log_p = [np.array(jax.nn.log_softmax(t[:, :SYMBOLS])) for t in tables]
    own = [[p[np.arange(1, 3), row[1:]].sum() for row in PAIR] for p in log_p]
    gain = np.array(own[0]) - np.array(own[1])
    assert float(terms.scalars["margin"]) == pytest.approx(gain[0] - gain[1], rel=1e-5)
    due = np.log1p(np.exp(-0.3 * (gain[0] - gain[1])))
    assert float(terms.total) == pytest.approx(due, rel=1e-5)
    assert float(terms.examples) == 1 and float(terms.count.sum()) == LENGTH - 1
