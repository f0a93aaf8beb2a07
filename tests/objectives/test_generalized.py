"""Rates by token in the objective: its gradient by enumeration, its draws, what it refuses."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.diffusion import Diffusion
from mdlm.objectives.base import score_masked
from mdlm.objectives.discrete_time import DiscreteNelbo
from mdlm.objectives.generalized import GeneralizedDiscreteNelbo, GeneralizedNelbo
from mdlm.objectives.nelbo import Nelbo
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.schedules.closed_form import LogLinear
from mdlm.schedules.per_token import LearnedPolynomial, Spindle
from mdlm.types import Batch, DenseLogits

MASK, V = 3, 4
SUBS = Subs(mask_id=MASK, vocab_size=V)
W = jnp.array([-0.6, 0.7, 1.9, 0.0])
OBJECTIVES = {
    "continuous": GeneralizedNelbo(),
    "published": GeneralizedNelbo(reconstruction="rates"),
    "discrete": GeneralizedDiscreteNelbo(steps=4),
}
objectives = pytest.mark.parametrize("name", OBJECTIVES)


def learned(w=W, eps=0.01):
    return Masked(schedule=LearnedPolynomial(eps=eps, vocab_size=V, w=w), mask_id=MASK)


def spindle(strength=0.3):
    schedule = Spindle(strength=strength).with_counts(np.array([90, 9, 1, 0]))
    return Masked(schedule=schedule, mask_id=MASK)


def rows_of(n: int, length: int = 4, seed: int = 0) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, MASK, (n, length)).astype(np.int32)
    return Batch(
        tokens=jnp.asarray(tokens),
        loss_mask=jnp.ones(tokens.shape, bool),
        is_valid=jnp.ones(tokens.shape, bool),
        row=jnp.arange(n),
        rows=jnp.asarray(n),
    )


def logits_of(tokens):
    """A network that looks at all tokens of the row."""
    table = jnp.asarray(np.random.default_rng(1).normal(size=(V, V)), jnp.float32)
    seen = jax.nn.one_hot(tokens, V) @ table
    place = jnp.arange(tokens.shape[1], dtype=jnp.float32)[None, :, None]
    return 2 * jnp.sin(seen * (1 + place) + 3 * seen.sum(1, keepdims=True))


def denoise(inputs, *, key=None):
    return DenseLogits(logits_of(inputs.tokens))


@pytest.mark.parametrize(
    ("u", "objective"),
    [
        (0.4, GeneralizedNelbo()),
        (0.1, GeneralizedNelbo(t_min=0.2)),  # the reconstruction
        (0.6, GeneralizedDiscreteNelbo(steps=4)),
    ],
)
def test_expected_gradient_in_the_powers_is_the_exact_one(u, objective):
    """Over all pairs of maskings of a row with an unscored token, which the network sees too, and
    a padding, which nothing masks."""
    x_0 = np.array([[2, 0, 1, 1]], np.int32)
    kinds = {"loss_mask": np.array([[False, True, True, False]])}
    kinds["is_valid"] = np.array([[True, True, True, False]])
    maskings = np.array([[*m, False] for m in itertools.product([False, True], repeat=3)])
    z = np.where(maskings, MASK, x_0).astype(np.int32)
    at = objective.moments(jnp.full((1, 1), u))

    def terms(w, z_t, scale):
        n = len(z_t)
        batch = replace(
            rows_of(n),
            tokens=jnp.asarray(np.repeat(x_0, n, 0)),
            **{name: jnp.asarray(np.repeat(kind, n, 0)) for name, kind in kinds.items()},
        )
        moment = jax.tree.map(lambda a: jnp.repeat(a, n, 0), at)
        moment = replace(moment, scale=moment.scale * scale[:, None])
        return objective.score(
            batch,
            z_t=jnp.asarray(z_t),
            at=moment,
            diffusion=Diffusion(process=learned(w), parameterization=SUBS, denoise=denoise),
        )

    def q(w):
        a = 0.99 * at.t[0, 0] ** jax.nn.softplus(w)[x_0]
        return jnp.where(maskings, a, 1 - a)[:, :3].prod(-1)

    @jax.jit
    def gradients():
        f = terms(W, z[:, None], jnp.ones(8)).bound.sum(-1)
        pathwise = jax.grad(lambda w: terms(w, z[:, None], q(W)).total)(W)
        exact = pathwise + jax.grad(lambda w: (q(w) * f).sum())(W)
        i, j = np.divmod(np.arange(64), 8)
        by_pair = q(W)[i] * q(W)[j]
        pairs = jax.grad(lambda w: terms(w, np.stack([z[i], z[j]], 1), by_pair).total)(W)
        return pathwise, exact, pairs

    pathwise, exact, pairs = gradients()
    assert np.abs(exact - pathwise)[:MASK].min() > 1e-3 * np.abs(exact).max()
    np.testing.assert_allclose(pairs, exact, rtol=1e-4, atol=1e-4 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("name", ["continuous", "discrete"])
def test_equal_rates_are_the_plain_bounds(name):
    process, objective = spindle(strength=0.0), OBJECTIVES[name]
    plain = {"continuous": Nelbo(), "discrete": DiscreteNelbo(steps=4)}[name]
    batch = rows_of(64)
    u = (jnp.arange(64)[:, None] + 0.5) / 64
    u = u.at[0].set(1e-4)
    at = objective.moments(u)
    t, weight = plain.times_and_weights(LogLinear(eps=0.0), u)
    np.testing.assert_array_equal(at.t, t)
    z_t = process.corrupt(jax.random.split(jax.random.key(0), 64), batch.tokens, t)
    z_t = z_t.at[0].set(MASK)
    diffusion = Diffusion(process=process, parameterization=SUBS, denoise=denoise)
    ours = jax.jit(lambda: objective.score(batch, z_t=z_t[:, None], at=at, diffusion=diffusion))()
    theirs = score_masked(batch, z_t=z_t, t=t, weight=weight, diffusion=diffusion)
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.total, theirs.total, rtol=1e-5)
    np.testing.assert_array_equal(ours.scored, theirs.scored)


@objectives
def test_total_is_the_sum_of_values_which_are_the_bound(name, key):
    for process in (learned(), spindle()):
        terms = jax.jit(
            lambda process=process: OBJECTIVES[name](
                key,
                rows_of(32),
                diffusion=Diffusion(process=process, parameterization=SUBS, denoise=denoise),
            )
        )()
        np.testing.assert_allclose(terms.total, terms.values.sum(), rtol=1e-5)
        np.testing.assert_array_equal(terms.values, terms.bound)
        named = {"power_min", "power_max", "power_mean"} if process.schedule.learns else set()
        assert set(terms.scalars) == named


def test_rows_are_noised_twice_where_the_schedule_learns(key):
    batch, seen = rows_of(32), []

    def watching(inputs, *, key=None):
        seen.append(inputs)
        return denoise(inputs)

    for process in (learned(), spindle()):
        diffusion = Diffusion(process=process, parameterization=SUBS, denoise=watching)
        GeneralizedNelbo()(key, batch, diffusion=diffusion)
    twice, once = seen
    assert once.tokens.shape == (32, 4) and twice.tokens.shape == (64, 4)
    np.testing.assert_array_equal(twice.t[::2], twice.t[1::2])
    first, second = (np.asarray(twice.tokens[i::2] == MASK) for i in (0, 1))
    assert (first != second).any()
    # Independent given the time: both masked as often as the product says, about.
    noised = learned().schedule.one_minus_alpha(
        jnp.broadcast_to(twice.t[::2], (32, 4)), batch.tokens
    )
    assert abs((first & second).mean() - float((noised**2).mean())) < 0.15


def test_a_row_draws_by_its_place(key):
    batch = rows_of(8)
    diffusion = Diffusion(process=learned(), parameterization=SUBS, denoise=denoise)
    run = jax.jit(lambda part: GeneralizedNelbo()(key, part, diffusion=diffusion).values)
    part = jax.tree.map(lambda x: x[2:5] if x.ndim else x, batch)
    np.testing.assert_allclose(run(part), run(batch)[2:5], rtol=1e-5)
    other = replace(batch, row=batch.row[::-1])
    assert (np.asarray(run(other)) != np.asarray(run(batch))).any()


@objectives
def test_gradients_are_finite_at_the_ends_of_time(name):
    """The row at t = 1 ends in a padding, which stays visible though alpha is 0."""
    objective, batch = OBJECTIVES[name], rows_of(2)
    inside = jnp.ones((2, 4), bool).at[1, 3].set(False)
    batch = replace(batch, loss_mask=inside, is_valid=inside)
    at = objective.moments(jnp.array([[0.0], [1 - 2.0**-24]]))
    z_t = jnp.full((2, 2, 4), MASK).at[0].set(batch.tokens[0]).at[0, 0, 0].set(MASK)
    z_t = z_t.at[1, :, 3].set(batch.tokens[1, 3])

    def total(w):
        process = learned(w, eps=0.0)
        return objective.score(
            batch,
            z_t=z_t,
            at=at,
            diffusion=Diffusion(process=process, parameterization=SUBS, denoise=denoise),
        ).total

    value, slope = jax.jit(jax.value_and_grad(total))(W)
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()


def test_tokens_never_masked_at_t_min_cost_nothing():
    """A power so large that float32 has no t_min^p."""
    process = learned(jnp.array([60.0, 1.0, 1.0, 1.0]))
    objective = OBJECTIVES["published"]
    cost, slope = jax.value_and_grad(
        lambda w: objective.by_rates(learned(w), jnp.array([[0, 1]])).sum()
    )(process.schedule.w)
    assert jnp.isfinite(cost) and cost > 0 and jnp.isfinite(slope).all()


def test_schedules_with_one_rate_are_refused():
    for objective in OBJECTIVES.values():
        refusal = objective.incompatibility(Masked(), SUBS)
        assert refusal is not None and "LogLinear" in refusal and "use Nelbo()" in refusal
        assert objective.incompatibility(learned(), SUBS) is None
        with pytest.raises(ValueError, match="LogLinear does not differ by token"):
            objective.score(
                rows_of(1),
                z_t=jnp.full((1, 1, 4), MASK),
                at=objective.moments(jnp.full((1, 1), 0.5)),
                diffusion=Diffusion(
                    process=Masked(mask_id=MASK), parameterization=SUBS, denoise=denoise
                ),
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeneralizedNelbo(t_min=0.0), "t_min=0.0"),
        (lambda: GeneralizedDiscreteNelbo(steps=0), "steps=0"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
