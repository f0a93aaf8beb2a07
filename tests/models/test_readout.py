"""The readout by chunks against the plain prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.models.readout import Readout
from mdlm.types import DenseLogits

B, L, D, V = 3, 10, 8, 13


def loss(logits, rows, shared):
    """A cross-entropy that is infinite at rows whose target is -1, as an unused row may be."""
    picked = jnp.take_along_axis(logits, rows["target"][:, None], -1)[:, 0]
    nll = (jax.nn.logsumexp(logits, -1) - picked) * shared["scale"] * rows["factor"]
    return jnp.where(rows["target"] < 0, jnp.inf, nll)


@pytest.fixture
def case(key):
    keys = jax.random.split(key, 6)
    weight = jax.random.uniform(keys[0], (B, L)) * jax.random.bernoulli(keys[1], 0.6, (B, L))
    target = jax.random.randint(keys[2], (B, L), 0, V)
    rows = {"target": jnp.where(weight == 0, -1, target), "factor": 1 + weight}
    head = (jax.random.normal(keys[3], (B, L, D)), jax.random.normal(keys[4], (D, V)))
    bias = jax.random.normal(keys[5], (V,))
    return (*head, bias, {"scale": jnp.float32(1.5)}), rows, weight


def run(make, differentiable, rows, weight):
    def total(hidden, kernel, bias, shared):
        return make(hidden, kernel, bias).reduce_rows(loss, rows, weight, shared)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))(*differentiable)


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 5, 7, 10, 100])
def test_reduce_rows_is_that_of_dense_logits(case, positions):
    differentiable, rows, weight = case
    ours = run(lambda *a: Readout(*a, chunk=positions * B * V), *case)
    dense = run(lambda h, k, b: DenseLogits(h @ k + b[None, None]), *case)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, dense)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(ours[1]))
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(ours[1]))


def test_values_carry_no_gradient(case):
    (hidden, kernel, bias, shared), rows, weight = case

    def total(hidden):
        readout = Readout(hidden, kernel, bias, chunk=B * V)
        return readout.reduce_rows(loss, rows, weight, shared)[1].sum()

    assert (jax.grad(total)(hidden) == 0).all()


def test_a_chunk_never_holds_more_logits_than_allowed(case):
    (hidden, kernel, bias, shared), rows, weight = case
    seen = []

    def note(logits, rows, shared):
        seen.append(logits.shape)
        return logits[:, 0]

    Readout(hidden, kernel, bias, chunk=4 * B * V).reduce_rows(note, rows, weight, shared)
    assert seen and max(n for n, _ in seen) <= 4 * B


def test_logits_of_some_rows(case):
    readout = Readout(*case[0][:3])
    at = jnp.array([0, 17, 29, 17])
    np.testing.assert_allclose(
        readout.logits(at), readout.logits().reshape(-1, V)[at], rtol=1e-5, atol=1e-5
    )


def test_logits_are_float32_for_hidden_states_of_bfloat16(case):
    hidden, kernel, bias, _ = case[0]
    assert Readout(hidden.astype(jnp.bfloat16), kernel, bias).logits().dtype == jnp.float32
