"""The networks against values of the public MDLM code, with its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.interop.mdlm_torch import params_from
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT, sinusoid
from mdlm.models.network import bind, denoiser
from mdlm.models.stack import run_blocks
from mdlm.types import NetInput

pytestmark = pytest.mark.golden
COLUMNS = 67
CLOSE = dict(rtol=1e-5, atol=2e-5)


@pytest.fixture
def dit(golden):
    network = DiT(width=64, depth=2, heads=4, cond_dim=32, dtype="float32")
    return network, params_from(golden("mdlm_dit.safetensors"), network, COLUMNS)


def test_noise_level(golden, dit):
    values = golden("mdlm_dit.npz")
    sigma = jnp.asarray(values["sigma"])[:, None]
    embedding = sinusoid(sigma)[:, 0]
    np.testing.assert_allclose(embedding, values["timestep_embedding"], **CLOSE)
    cond = bind(*dit[:1], COLUMNS, dit[1]).noise_level(sigma)[:, 0]
    np.testing.assert_allclose(cond, values["cond"], **CLOSE)


def test_hidden_states(golden, dit):
    network, params = dit
    values = golden("mdlm_dit.npz")
    module = bind(network, COLUMNS, params)
    inputs = NetInput(tokens=jnp.asarray(values["x"]))
    x = module.embed(inputs.tokens)
    np.testing.assert_array_equal(x, values["embed"])
    cond = module.noise_level(jnp.asarray(values["sigma"])[:, None])
    for i in range(network.depth):
        block = jax.tree.map(lambda a, i=i: a[i : i + 1], module.blocks)
        x = run_blocks(block, x, inputs, cond=cond, key=None)
        np.testing.assert_allclose(x, values[f"hidden_time_block{i}"], **CLOSE)


@pytest.mark.parametrize("remat", ["none", "products", "blocks"])
def test_logits_with_time(golden, dit, remat):
    network, params = dit
    values = golden("mdlm_dit.npz")
    network = DiT(width=64, depth=2, heads=4, cond_dim=32, dtype="float32", remat=remat)
    # What is fed is handed through `t`, so that any noise level can be compared.
    denoise = denoiser(network, COLUMNS, params, condition=lambda t: t)
    inputs = NetInput(tokens=jnp.asarray(values["x"]), t=jnp.asarray(values["sigma"])[:, None])
    np.testing.assert_allclose(denoise(inputs).logits(), values["logits_time"], **CLOSE)


def test_logits_per_token_noise_level(golden, dit):
    values = golden("mdlm_dit.npz")
    denoise = denoiser(dit[0], COLUMNS, dit[1], condition=lambda t: t)
    t = jnp.broadcast_to(jnp.asarray(values["sigma"])[:, None], values["x"].shape)
    logits = denoise(NetInput(tokens=jnp.asarray(values["x"]), t=t)).logits()
    np.testing.assert_allclose(logits, values["logits_time"], **CLOSE)


def test_logits_without_time(golden, dit):
    values = golden("mdlm_dit.npz")
    denoise = denoiser(dit[0], COLUMNS, dit[1])
    logits = denoise(NetInput(tokens=jnp.asarray(values["x"]))).logits()
    np.testing.assert_allclose(logits, values["logits_notime"], **CLOSE)


def test_causal_logits(golden):
    values = golden("mdlm_ar.npz")
    network = CausalTransformer(width=64, depth=2, heads=4, dtype="float32")
    params = params_from(golden("mdlm_ar.safetensors"), network, COLUMNS)
    logits = denoiser(network, COLUMNS, params)(
        NetInput(tokens=jnp.asarray(values["tokens"]))
    ).logits()
    np.testing.assert_allclose(logits[:, 1:], values["raw_logits"], **CLOSE)
