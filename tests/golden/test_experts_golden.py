"""A decoder with experts against values of LLaDA2's code, with its weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.models import Decoder, Experts
from mdlm.models.attention.dispatch import attention
from mdlm.models.attention.mask import Halves
from mdlm.models.block_rows import joined
from mdlm.models.decoding.last_block import joined_heads
from mdlm.models.network import bind, denoiser, shapes
from mdlm.models.stack import mask_of, run_blocks, table_of
from mdlm.types import NetInput

pytestmark = pytest.mark.golden
COLUMNS = 64
CLOSE: dict = dict(rtol=1e-5, atol=1e-4)
FULL = Decoder(
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    head_width=16,
    hidden=48,
    qk_norm="separate",
    rotary_base=6e5,
    rotary_fraction=0.5,
    norm_epsilon=1e-6,
    dtype="float32",
    experts=Experts(count=8, chosen=2, groups=4, kept_groups=2, hidden=12, scaling=2.5),
)
BLOCKS = Decoder(**{**vars(FULL), "attends": "blocks", "block_size": 4})


@pytest.fixture(scope="module")
def stored(golden):
    return golden("interop_llada2moe.safetensors")


@pytest.fixture(scope="module")
def values(golden):
    return golden("interop_llada2moe.npz")


@pytest.fixture(scope="module")
def params(stored):
    def mlp(name):
        gate, up, down = (stored[f"{name}.{part}_proj.weight"].T for part in ("gate", "up", "down"))
        return {"inner": {"kernel": np.concatenate([gate, up], 1)}, "outer": {"kernel": down}}

    def block(i):
        layer = f"model.layers.{i}."
        own = {
            "norm1": "input_layernorm",
            "norm2": "post_attention_layernorm",
            "q_norm": "attention.query_layernorm",
            "k_norm": "attention.key_layernorm",
        }
        found = {name: {"scale": stored[f"{layer}{theirs}.weight"]} for name, theirs in own.items()}
        found["qkv"] = {"kernel": stored[f"{layer}attention.query_key_value.weight"].T}
        found["attn_out"] = {"kernel": stored[f"{layer}attention.dense.weight"].T}
        found["mlp"] = mlp(f"{layer}mlp") if i == 0 else experts(f"{layer}mlp")
        return jax.tree.map(lambda a: a[None], found)

    def experts(name):
        each = [mlp(f"{name}.experts.{e}") for e in range(8)]
        return {
            **jax.tree.map(lambda *a: np.stack(a), *each),
            "router": {"kernel": stored[f"{name}.gate.weight"].T},
            "selection_bias": stored[f"{name}.gate.expert_bias"],
            "shared": mlp(f"{name}.shared_experts"),
        }

    found = {
        "embed": {"table": stored["model.word_embeddings.weight"]},
        "blocks": {"first": block(0), "rest": block(1)},
        "norm": {"scale": stored["model.norm.weight"]},
        "head": {"kernel": stored["lm_head.weight"].T},
    }
    due = jax.tree.map(lambda a: a.shape, shapes(FULL, COLUMNS))
    assert jax.tree.map(lambda a: a.shape, found) == due
    return found


@functools.partial(jax.jit, static_argnums=0)
def logits(network, params, inputs):
    return denoiser(network, COLUMNS, params)(inputs).logits()


def test_full_attention(params, values):
    tokens = jnp.asarray(values["x"], jnp.int32)
    found = logits(FULL, params, NetInput(tokens=tokens))
    np.testing.assert_allclose(found, values["logits_full"], **CLOSE)


def test_block_causal_attention(params, values):
    tokens = jnp.asarray(values["x"], jnp.int32)
    found = logits(BLOCKS, params, NetInput(tokens=tokens, clean=tokens))
    np.testing.assert_allclose(found, values["logits_block_causal"], **CLOSE)


def test_routing(params, values):
    """The scores and choices of layer 1 of the block causal call, from the layer's own parts."""
    halves = Halves(16, 4)

    @jax.jit
    def routed(params, inputs):
        module: Any = bind(BLOCKS, COLUMNS, params)
        both, first = joined(inputs), module.blocks.first
        how: Any = dict(halves=halves)
        x = run_blocks(first, module.embed(both.tokens), both, cond=None, key=None, **how)
        block = jax.tree.map(lambda a: a[0], module.blocks.rest)
        q, k, v = block.projected(block.norm1(x), table_of(both, 32, BLOCKS.rotary))
        x = x + block.attn_out(joined_heads(attention(q, k, v, mask_of(both, **how))))
        y = block.norm2(x)[:, :16]
        return y @ block.mlp.router.kernel[...], *block.mlp.route(y)

    tokens = jnp.asarray(values["x"], jnp.int32)
    scores, which, weights = jax.device_get(routed(params, NetInput(tokens=tokens, clean=tokens)))
    np.testing.assert_allclose(scores, values["router_logits_layer1"], **CLOSE)
    np.testing.assert_array_equal(np.sort(which), values["experts_layer1"])
    # The bias decides about some tokens, and weighs none.
    plain = np.sort(np.argsort(scores)[..., -2:])
    assert (plain != values["experts_layer1"]).any()
    s = np.take_along_axis(1 / (1 + np.exp(-scores.astype(np.float64))), which, -1)
    np.testing.assert_allclose(weights, 2.5 * s / s.sum(-1, keepdims=True), rtol=1e-5)
