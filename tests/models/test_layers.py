"""The hand-written product and the small layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mdlm.models.layers import Linear, dropout, hashed_bits, matmul, parts
from mdlm.models.mlp import gelu
from mdlm.parallel.mesh import MeshShape

FLOAT32 = jnp.dtype(jnp.float32)


def value_and_gradients(product, x, w, g):
    def total(x, w):
        return (product(x, w).astype(jnp.float32) * g).sum()

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(x, w)


def operands(key, shape, dtype=jnp.float32):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (*shape, 32), dtype)
    w = jax.random.normal(keys[1], (32, 48), dtype)
    return x, w, jax.random.normal(keys[2], (*shape, 48))


@pytest.mark.parametrize("shape", [(8,), (8, 6), (8, 3, 2)])
def test_matmul_is_the_plain_product(key, shape):
    x, w, g = operands(key, shape)
    ours = value_and_gradients(lambda x, w: matmul(x, w, FLOAT32), x, w, g)
    plain = value_and_gradients(lambda x, w: x @ w, x, w, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), ours, plain)


def test_matmul_sharded(key):
    x, w, g = operands(key, (8, 6))
    mesh = MeshShape(data=2, fsdp=4).build()
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    product = lambda x, w: matmul(x, w, FLOAT32)
    ours = value_and_gradients(
        product, jax.device_put(x, rows), jax.device_put(w, split), jax.device_put(g, rows)
    )
    plain = value_and_gradients(lambda x, w: x @ w, x, w, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), ours, plain)


def test_matmul_of_bfloat16_sums_in_float32(key):
    x, w, g = operands(key, (8,), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    np.testing.assert_allclose(matmul(x, w, FLOAT32), exact, rtol=1e-5, atol=1e-4)
    _, (dx, dw) = value_and_gradients(lambda x, w: matmul(x, w, FLOAT32), x, w, g)
    assert dx.dtype == dw.dtype == jnp.bfloat16


@pytest.mark.parametrize("zero", [False, True])
def test_linear_starts_uniform_in_one_over_root_fan_in(zero):
    layer = Linear(400, 300, nnx.Rngs(0), dtype=FLOAT32, zero=zero)
    for values in (layer.kernel[...], layer.bias[...]):
        largest = float(jnp.abs(values).max())
        assert largest == 0 if zero else 0.99 / 20 * 0.95 < largest <= 1 / 20


def test_dropout_keeps_the_mean(key):
    x = jnp.ones((200, 500))
    dropped = dropout(key, x, 0.2)
    np.testing.assert_allclose(float(dropped.mean()), 1, atol=0.01)
    np.testing.assert_allclose(float((dropped == 0).mean()), 0.2, atol=0.01)
    np.testing.assert_array_equal(dropout(None, x, 0.2), x)


def test_dropout_bits_look_random():
    """Bits are fair one by one, and neighbours, keys and folded keys share nothing."""
    shape, n = (64, 128, 64), 64 * 128 * 64
    draw = jax.jit(lambda key: hashed_bits(key, shape))
    keys = [jax.random.key(0), jax.random.key(1), jax.random.fold_in(jax.random.key(0), 1)]
    drawn = [np.asarray(draw(key)) for key in keys]
    for bits in drawn:
        ones = np.unpackbits(bits.reshape(-1, 1).view(np.uint8), axis=1).mean(0)
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(n)
        counts = np.bincount(bits.reshape(-1) >> 24, minlength=256)
        chi2 = np.square(counts - n / 256).sum() / (n / 256)
        assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)
        uniform = bits / 2.0**32 - 0.5
        for axis in range(3):
            for lag in (1, 2, 16):
                both = uniform * np.roll(uniform, lag, axis)
                assert abs(both.mean()) < 5 / 12 / np.sqrt(n), (axis, lag)
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert abs(((a / 2.0**32 - 0.5) * (b / 2.0**32 - 0.5)).mean()) < 5 / 12 / np.sqrt(n)
            assert (a == b).mean() < 1e-5


def test_dropout_bits_do_not_depend_on_the_mesh():
    mesh = MeshShape(data=8).build()
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    draw = lambda: hashed_bits(jax.random.key(3), (16, 8, 4))
    np.testing.assert_array_equal(jax.jit(draw, out_shardings=split)(), jax.jit(draw)())


def test_gelu_and_parts_have_the_gradients_of_the_plain_ones(key):
    x = jax.random.normal(key, (5, 12))
    weigh = jnp.arange(60.0).reshape(5, 12)

    def plain(x):
        a, b, c = jnp.split(x, 3, axis=-1)
        return (jnp.concatenate([jax.nn.gelu(a), b * c, jnp.sin(c)], -1) * weigh).sum()

    def ours(x):
        a, b, c = parts(x, (4, 4, 4))
        return (jnp.concatenate([gelu(a), b * c, jnp.sin(c)], -1) * weigh).sum()

    for f in (lambda f: f(x), lambda f: jax.grad(f)(x)):
        np.testing.assert_allclose(f(ours), f(plain), rtol=1e-5, atol=1e-5)
