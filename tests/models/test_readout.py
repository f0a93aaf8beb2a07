"""The readout by chunks against the plain prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.models.readout import Readout
from mdlm.parallel import mesh as meshes
from mdlm.parallel import sharding
from mdlm.parallel.mesh import MeshShape
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


@pytest.mark.parametrize("small", [8, 2**14])
@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(data=4),
        MeshShape(data=2, fsdp=2),
        MeshShape(data=2, tensor=2),
        MeshShape(data=1, sequence=2, tensor=2),
    ],
    ids=str,
)
def test_each_device_reduces_its_own_rows(case, shape, small, monkeypatch):
    """Four rows of unequal weight over four devices; one device has nothing to score at all.

    The ten places are no multiple of four: in the last case two devices do the same, and a kernel
    that is split over all four (it is where it is not `small`) gets its gradient once.
    """
    monkeypatch.setattr(sharding, "SMALL", small)
    (hidden, kernel, bias, shared), rows, weight = jax.tree.map(
        lambda x: jnp.concatenate([x, x[:1]]) if x.ndim > 1 and x.shape[0] == B else x, case
    )
    weight = weight.at[1].set(0.0)
    rows["target"] = jnp.where(weight == 0, -1, jnp.maximum(rows["target"], 0))
    mesh = shape.build(jax.devices()[:4])
    place = lambda x: jax.device_put(x, meshes.by_rows(mesh))
    whole = lambda x: jax.device_put(x, meshes.replicated(mesh))

    def total(hidden, kernel, bias, shared, rows, weight):
        with meshes.on(mesh):
            return Readout(hidden, kernel, bias, chunk=2 * V).reduce_rows(
                loss, rows, weight, shared
            )

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))
    placed = (place(hidden), *map(whole, (kernel, bias, shared)), place(rows), place(weight))
    program = step.lower(*placed).compile().as_text()
    assert "all-reduce" in program
    ours = step(*placed)
    dense = run(
        lambda h, k, b: DenseLogits(h @ k + b[None, None]),
        (hidden, kernel, bias, shared),
        rows,
        weight,
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, dense)


def test_the_cotangent_scales_the_gradients(case):
    (hidden, kernel, bias, shared), rows, weight = case
    readout = lambda kernel: Readout(hidden, kernel, bias, chunk=3 * V)
    once = jax.grad(lambda k: readout(k).reduce_rows(loss, rows, weight, shared)[0])(kernel)
    thrice = jax.grad(lambda k: 3 * readout(k).reduce_rows(loss, rows, weight, shared)[0])(kernel)
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_without_bias_and_in_bfloat16(case):
    (hidden, kernel, _, shared), rows, weight = case
    half = lambda h, k, b: Readout(h.astype(jnp.bfloat16), k, None, chunk=3 * V)
    low, high = (
        run(make, (hidden, kernel, jnp.zeros(V), shared), rows, weight)
        for make in (half, lambda h, k, b: DenseLogits(h @ k))
    )
    np.testing.assert_allclose(low[0][0], high[0][0], rtol=2e-2)
    np.testing.assert_allclose(low[1][1], high[1][1], atol=0.05 * np.abs(high[1][1]).max())
    assert low[1][1].dtype == jnp.float32


def test_rows_that_weigh_nothing_cost_nothing():
    """The loop runs over the rows that are used and no further."""
    n, seen = 1024, []

    def note(logits, rows, shared):
        jax.debug.callback(lambda m: seen.append(int(m)), logits.shape[0], ordered=True)
        return logits[:, 0]

    weight = jnp.zeros((1, n)).at[0, ::8].set(1.0)
    readout = Readout(jnp.ones((1, n, 4)), jnp.ones((4, 8)), None)
    jax.block_until_ready(jax.jit(lambda: readout.reduce_rows(note, {}, weight))())
    jax.effects_barrier()
    assert sum(seen) == 128


def compiled_memory(make, b, l, d, v):
    def total(hidden, kernel, bias, rows, weight):
        return make(hidden, kernel, bias).reduce_rows(loss, rows, weight, {"scale": 1.0})

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((b, l, d), (d, v), (v,))]
    rows = {
        "target": jax.ShapeDtypeStruct((b, l), jnp.int32),
        "factor": jax.ShapeDtypeStruct((b, l), jnp.float32),
    }
    weight = jax.ShapeDtypeStruct((b, l), jnp.float32)
    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    compiled = step.lower(*arrays, rows, weight).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_an_eighth_of_the_plain_head():
    """At the sizes of a published model: 4,096 tokens, width 768, 50,258 columns."""
    sizes = (4, 1024, 768, 50_258)
    ours = compiled_memory(Readout, *sizes)
    plain = compiled_memory(lambda h, k, b: DenseLogits(h @ k + b[None, None]), *sizes)
    assert ours < plain / 8
