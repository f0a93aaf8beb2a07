"""Muon on stacked matrices: each layer as if it stood alone, and only the hidden ones."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm.optim import Muon, hidden


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
    labels = hidden(params)
    assert labels["blocks"]["qkv"]["kernel"] == "muon"
    assert labels["blocks"]["modulation"]["kernel"] == "adam"
    assert labels["blocks"]["norm"]["scale"] == "adam"
    assert labels["embed"]["table"] == "adam"
