"""A last block computed at some positions gives the logits of one computed everywhere."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.models.block import BlockDiT
from mdlm.models.decoding.last_block import DeferredReadout
from mdlm.models.dit import DiT
from mdlm.models.network import denoiser, init
from mdlm.models.readout import Readout
from mdlm.types import NetInput

SIZES = dict(width=32, depth=3, heads=2, cond_dim=16)
NETWORKS = {
    "plain": DiT(**SIZES),
    "one block": DiT(**{**SIZES, "depth": 1}),
    "other norms": DiT(**SIZES, qk_norm=True, norm="rms", mlp="swiglu", use_bias=False),
    "no adaLN": DiT(**{**SIZES, "cond_dim": 0}),
    "labels": DiT(**SIZES, labels=3),
    "self-conditioning": DiT(**SIZES, self_conditioning=True),
    "bfloat16": DiT(**SIZES, dtype="bfloat16"),
    "block diffusion": BlockDiT(**SIZES, block_size=4),
}
B, L, V = 3, 12, 17


def inputs_for(network, *, per_token):
    rng = np.random.default_rng(0)
    draw = lambda: jnp.asarray(rng.integers(0, V, (B, L)))
    shape = (B, L) if per_token else (B, 1)
    return NetInput(
        tokens=draw(),
        t=jnp.asarray(rng.random(shape), jnp.float32) if network.cond_dim else None,
        clean=draw() if network.attends == "blocks" else None,
        is_valid=jnp.arange(L)[None] < jnp.array([[L], [8], [L]]),
        segment_ids=(jnp.arange(L)[None] >= jnp.array([[5], [0], [9]])).astype(jnp.int32),
        positions=jnp.asarray(rng.integers(0, 50, (B, L))),
        label=jnp.asarray([0, 3, 1]) if getattr(network, "labels", 0) else None,
    )


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_deferred_last_block_gives_the_logits_of_the_whole_network(key, name, per_token):
    network = NETWORKS[name]
    params = init(network, key, V)
    # No branch is to be switched off by its initial zeros.
    shake = lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    params = jax.tree.map(shake, params)
    condition = (lambda t: t) if network.cond_dim else None
    denoise = denoiser(network, V, params, condition=condition)
    inputs = inputs_for(network, per_token=per_token)
    at = jnp.asarray([0, 7, 12, 19, 24, 24, 35])  # none of them padding

    @jax.jit
    def both(inputs):
        deferred = denoise(replace(inputs, defer_last_block=True))
        assert isinstance(deferred, DeferredReadout)
        everywhere = deferred.whole.logits(), deferred.logits()
        return denoise(inputs).logits(), deferred.logits(at), *everywhere

    dense, few, whole, all_of_it = both(inputs)
    scale = float(jnp.abs(dense).max())
    close = dict(rtol=0, atol=(3e-2 if name == "bfloat16" else 1e-5) * scale)
    np.testing.assert_allclose(few, dense.reshape(-1, V)[at], **close)
    valid = np.asarray(inputs.is_valid)
    np.testing.assert_allclose(np.asarray(whole)[valid], np.asarray(dense)[valid], **close)
    np.testing.assert_array_equal(whole, all_of_it)
    assert float(jnp.abs(few[0] - few[1]).max()) > 1e-2 * scale


def test_a_network_in_training_defers_nothing(key):
    network = NETWORKS["plain"]
    denoise = denoiser(network, V, init(network, key, V), condition=lambda t: t)
    inputs = replace(inputs_for(network, per_token=False), defer_last_block=True)
    assert isinstance(denoise(inputs), DeferredReadout)
    assert isinstance(denoise(inputs, key=key), Readout)
