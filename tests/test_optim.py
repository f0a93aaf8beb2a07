"""Muon on stacked matrices: each layer as if it stood alone, and only the hidden ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdlm.optim import AdamW, Muon, hidden


def tree(keys, stacked: bool):
    shapes = {
        "qkv": {"kernel": (8, 24)},
        "modulation": {"kernel": (4, 48)},
        "norm": {"scale": (8,)},
    }
    layers = [
        jax.tree.map(
            lambda shape, k=key: jax.random.normal(jax.random.fold_in(k, shape[-1]), shape),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for key in keys
    ]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *layers) if stacked else layers


def test_stacked_layers_move_as_single_ones_do():
    keys = jax.random.split(jax.random.key(0), 3)
    tx = Muon(warmup_steps=0, clip_norm=0).build(10)
    stacked = {"blocks": tree(keys, True), "embed": {"table": jnp.ones((6, 8))}}
    gradient = jax.tree.map(jnp.sin, stacked)
    updates, _ = tx.update(gradient, tx.init(stacked), stacked)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], stacked["blocks"])
        alone = {"blocks": one, "embed": stacked["embed"]}
        mine, _ = tx.update(jax.tree.map(jnp.sin, alone), tx.init(alone), alone)
        here = jax.tree.map(lambda x, i=i: x[i : i + 1], updates["blocks"])
        for a, b in zip(jax.tree.leaves(mine["blocks"]), jax.tree.leaves(here), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    # Orthogonalised: all singular values of a hidden matrix's update are near one another.
    values = np.linalg.svd(np.asarray(updates["blocks"]["qkv"]["kernel"]), compute_uv=False)
    assert values.min() > 0.4 * values.max()


def test_only_hidden_matrices_go_by_muon():
    params = {"blocks": tree(jax.random.split(jax.random.key(0), 2), True)}
    params["embed"] = {"table": jnp.ones((6, 8))}
    params["blocks"]["key"] = jnp.ones((2, 4, 8))  # a learned key for each head: vectors
    labels = hidden(params)
    assert labels["blocks"]["key"] == "adam"
    assert labels["blocks"]["qkv"]["kernel"] == "muon"
    assert labels["blocks"]["modulation"]["kernel"] == "adam"
    assert labels["blocks"]["norm"]["scale"] == "adam"
    assert labels["embed"]["table"] == "adam"


def test_stacked_matrices_move_as_optax_moves_flat_ones():
    """Two steps of `[n, i, o]` parameters against optax's own Muon on each `[i, o]` matrix."""
    kernels = jax.random.normal(jax.random.key(0), (3, 8, 24))
    gradients = jax.random.normal(jax.random.key(1), (2, 3, 8, 24))
    tx = Muon(warmup_steps=0, clip_norm=0, learning_rate=0.1).build(10)
    params = {"blocks": {"qkv": {"kernel": kernels}}}
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update({"blocks": {"qkv": {"kernel": gradient}}}, state, params)
        params = optax.apply_updates(params, updates)
    for i in range(3):
        flat = optax.contrib.scale_by_muon(beta=0.95)
        kernel, state = kernels[i], flat.init(kernels[i])
        for gradient in gradients[:, i]:
            update, state = flat.update(gradient, state, kernel)
            kernel = kernel - 0.1 * update
        np.testing.assert_allclose(params["blocks"]["qkv"]["kernel"][i], kernel, atol=1e-5)


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_first_moments_in_bfloat16(optimizer):
    params = {"blocks": tree(jax.random.split(jax.random.key(0), 3), True)}
    gradient = jax.tree.map(lambda x: jnp.sin(3 * x), params)

    def after(steps, dtype):
        tx = optimizer(warmup_steps=0, learning_rate=0.01, momentum_dtype=dtype).build(10)
        state, p = tx.init(params), params
        for _ in range(steps):
            updates, state = tx.update(gradient, state, p)
            p = optax.apply_updates(p, updates)
        return p, state

    low, state = after(3, "bfloat16")
    high, _ = after(3, "float32")
    kinds = [a.dtype for a in jax.tree.leaves(state) if a.ndim > 1]
    assert kinds.count(jnp.bfloat16) == len(jax.tree.leaves(params))
    for a, b, start in zip(*map(jax.tree.leaves, (low, high, params)), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.05 * float(jnp.abs(b - start).max()))
