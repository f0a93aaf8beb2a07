"""Self-conditioning: two passes, no gradient through the first, a coin in training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mdlm.experiment.model import Model
from mdlm.keys import stream
from mdlm.models.dit import DiT
from mdlm.models.network import bind, denoiser, init, shapes
from mdlm.types import Batch, NetInput, Vocab

COLUMNS, B, L, WIDTH = 13, 2, 6, 32
PLAIN = DiT(width=WIDTH, depth=1, heads=2, cond_dim=8, dtype="float32")
SHOWN = replace(PLAIN, self_conditioning=True)


@pytest.fixture(scope="module")
def params():
    """Parameters that are nowhere 0."""
    random = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.3 * random.normal(size=a.shape), jnp.float32)
    return jax.tree.map(draw, shapes(SHOWN, COLUMNS))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(3), (B, L), 0, COLUMNS)


@jax.jit
def one_pass(params, tokens, shown):
    module = bind(SHOWN, COLUMNS, params)
    answer = module(NetInput(tokens=tokens, self_cond=shown), condition=None, key=None)
    return answer.logits(), answer.hidden


@jax.jit
def asked(params, tokens, key=None):
    return denoiser(SHOWN, COLUMNS, params)(NetInput(tokens=tokens), key=key).logits()


def test_evaluation_shows_what_a_first_pass_said(params, tokens):
    blind, hidden = one_pass(params, tokens, None)
    second, _ = one_pass(params, tokens, hidden)
    np.testing.assert_allclose(asked(params, tokens), second, rtol=1e-5, atol=1e-5)
    assert jnp.abs(second - blind).max() > 1e-2
    zeros = one_pass(params, tokens, jnp.zeros((B, L, WIDTH)))[0]
    np.testing.assert_allclose(zeros, blind, rtol=1e-6, atol=1e-6)


def test_a_given_state_is_passed_on(params, tokens):
    given = jax.random.normal(jax.random.key(0), (B, L, WIDTH))
    found = denoiser(SHOWN, COLUMNS, params)(NetInput(tokens=tokens, self_cond=given)).logits()
    np.testing.assert_allclose(found, one_pass(params, tokens, given)[0], rtol=1e-5, atol=1e-5)


def test_training_tosses_a_coin_for_the_call(params, tokens):
    blind, hidden = one_pass(params, tokens, None)
    second, _ = one_pass(params, tokens, hidden)
    tosses = []
    for key in jax.random.split(jax.random.key(4), 60):
        found = asked(params, tokens, key)
        is_second = np.allclose(found, second, rtol=1e-4, atol=1e-4)
        assert is_second or np.allclose(found, blind, rtol=1e-4, atol=1e-4)
        tosses.append(is_second)
    assert 15 < sum(tosses) < 45  # 30 +- 15, four standard deviations


@pytest.mark.parametrize("is_shown", [True, False])
def test_no_gradient_through_the_first_pass(params, tokens, is_shown):
    """In training too, where the first pass stands inside a condition."""
    keys = jax.random.split(jax.random.key(4), 60)
    tossed = lambda key: bool(jax.random.bernoulli(stream(key, "self-conditioning")))
    key = next(key for key in keys if tossed(key) == is_shown)
    hidden = one_pass(params, tokens, None)[1] if is_shown else jnp.zeros((B, L, WIDTH))

    def in_two(params):
        prediction = denoiser(SHOWN, COLUMNS, params)(NetInput(tokens=tokens), key=key)
        return jnp.square(prediction.logits()).mean()

    def in_one(params):
        return jnp.square(one_pass(params, tokens, hidden)[0]).mean()

    found, expected = jax.jit(jax.grad(in_two))(params), jax.jit(jax.grad(in_one))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )
    assert (jnp.abs(found["shown"]["kernel"]).max() > 1e-6) == is_shown


def test_without_it_nothing_changes(tokens):
    start = init(SHOWN, jax.random.key(0), COLUMNS)
    kernel = start.pop("shown")["kernel"]
    assert kernel.shape == (WIDTH, WIDTH) and (kernel == 0).all()
    plain = init(PLAIN, jax.random.key(0), COLUMNS)
    jax.tree.map(np.testing.assert_array_equal, start, plain)
    with pytest.raises(ValueError, match="without self-conditioning"):
        denoiser(PLAIN, COLUMNS, plain)(NetInput(tokens=tokens, self_cond=jnp.zeros((B, L, WIDTH))))


def test_flops_are_those_of_a_pass_that_is_shown_something():
    extra = SHOWN.flops(3, L, 5, COLUMNS) - PLAIN.flops(3, L, 5, COLUMNS)
    assert extra == 2 * 3 * L * WIDTH**2


@pytest.mark.slow
def test_trains_and_uses_what_it_is_shown(tmp_path):
    """The projection leaves 0, and what the trained network is shown then changes its answers."""
    vocab = Vocab(size=COLUMNS, mask_id=COLUMNS - 1)
    model = Model(tiny.experiment(tmp_path / "none.txt", network=SHOWN), vocab)
    rows = 16
    start = np.random.default_rng(0).integers(0, COLUMNS - 1, (rows, 1))
    batch = Batch(
        tokens=jnp.asarray((start + np.arange(L)[None]) % (COLUMNS - 1), jnp.int32),
        loss_mask=jnp.ones((rows, L), bool),
        row=jnp.arange(rows),
        rows=jnp.asarray(rows),
    )

    tx = optax.adam(1e-2)

    def step(carry, key):
        params, state = carry

        def loss(params):
            return model.loss(params, key, batch).total / (rows * L)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def train(key):
        params = model.init(stream(key, "init"))
        keys = jax.random.split(stream(key, "train"), 400)
        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
        return params, losses

    params, losses = train(jax.random.key(0))
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
    kernel = params["network"]["shown"]["kernel"]
    assert jnp.abs(kernel).max() > 1e-3
    score = jax.jit(lambda params, key: model.evaluate(params, key, batch).bound.sum())
    silent = {**params["network"], "shown": {"kernel": 0 * kernel}}
    key = jax.random.key(2)
    assert abs(score(params, key) - score({"network": silent}, key.copy())) > 1e-3
