"""The networks of GIDD and of its scaling study against the values of their public code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mdlm.interop.mdlm_torch import params_from
from mdlm.models.dit import DiT, sinusoid
from mdlm.models.gidd import ScaledTransformer
from mdlm.models.network import denoiser, init, shapes
from mdlm.types import NetInput

CLOSE = dict(rtol=1e-5, atol=2e-5)
SCALED = ScaledTransformer(width=16, depth=2, heads=2, dtype="float32")
COLUMNS = 23


@pytest.mark.golden
def test_gidd_s_transformer_is_our_dit(golden):
    """With 128 columns for 20 tokens, told t itself."""
    values = golden("gidd_dit_tiny.npz")
    tensors = {k.removeprefix("params/"): values[k] for k in values if k.startswith("params/")}
    assert (
        tensors.pop("logit_bias") == 0
    ).all()  # added to all logits alike: no distribution has it
    tensors = {k: v for k, v in tensors.items() if not k.startswith("rotary_emb")}
    network = DiT(width=16, depth=2, heads=2, cond_dim=8, dtype="float32")
    t = jnp.asarray(values["t"], jnp.float32)[:, None]
    np.testing.assert_allclose(sinusoid(t)[:, 0], values["timestep_embedding_dim256"], **CLOSE)
    denoise = denoiser(network, 128, params_from(tensors, network, 128), condition=lambda t: t)
    logits = denoise(NetInput(tokens=jnp.asarray(values["input_ids"]), t=t)).logits()
    np.testing.assert_allclose(logits, values["logits"], **CLOSE)


def stored(values):
    """The stored weights as our parameters; their scales are 1 + weight."""
    theirs = {k.removeprefix("params/"): values[k] for k in values if k.startswith("params/")}
    take = lambda name: theirs.pop(name)
    scale = lambda name: {"scale": 1 + take(f"{name}.weight")}
    kernel = lambda name: {"kernel": take(f"{name}.weight").T}

    def block(i):
        at = f"model.layers.{i}."
        part = {
            "norm1": scale(at + "attn_layernorm"),
            "norm2": scale(at + "mlp_layernorm"),
            "q_norm": scale(at + "self_attn.q_norm"),
            "k_norm": scale(at + "self_attn.k_norm"),
            "key": take(at + "self_attn.k_bias"),
            "value": take(at + "self_attn.v_bias"),
            "attn_out": kernel(at + "self_attn.o_proj"),
            "mlp": {
                "inner": kernel(at + "mlp.up_proj") | {"bias": take(at + "mlp.up_proj.bias")},
                "outer": kernel(at + "mlp.down_proj") | {"bias": take(at + "mlp.down_proj.bias")},
            },
        }
        return part | {x: kernel(at + f"self_attn.{x}_proj") for x in "qkv"}

    blocks = [block(i) for i in range(2)]
    params = {
        "embed": {"table": take("model.embed_tokens.weight")},
        "blocks": jax.tree.map(lambda *a: np.stack(a), *blocks),
        "norm": scale("model.norm"),
        "head": kernel("lm_head"),
    }
    assert not theirs, f"not used: {sorted(theirs)}"
    expected = jax.tree.map(lambda a: a.shape, shapes(SCALED, COLUMNS))
    assert jax.tree.map(np.shape, params) == expected
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.golden
def test_scaled_logits(golden):
    values = golden("gidd_scaled_model_tiny.npz")
    denoise = denoiser(SCALED, COLUMNS, stored(values))
    tokens, is_noisy = jnp.asarray(values["input_ids"]), jnp.asarray(values["noise_mask"])
    # Logits reach 80: the head multiplies by 512 / 16.
    close = dict(rtol=1e-4, atol=2e-4)
    for t in (None, jnp.full((2, 1), 0.4)):
        full = denoise(NetInput(tokens=tokens, t=t)).logits()
        np.testing.assert_allclose(full, values["logits_full_attention"], **close)
    prompted = denoise(NetInput(tokens=tokens, t=jnp.where(is_noisy, 0.4, 0.0))).logits()
    np.testing.assert_allclose(prompted, values["logits_prompt_mask"], **close)
    assert np.abs(prompted - values["logits_full_attention"]).max() > 1


def some_params():
    """With a head and extra keys other than 0."""
    random = np.random.default_rng(0)
    draw = lambda array: jnp.asarray(random.normal(size=array.shape), jnp.float32) / 3
    return jax.tree.map(draw, shapes(SCALED, COLUMNS))


@jax.jit
def answer(tokens, **inputs):
    return denoiser(SCALED, COLUMNS, some_params())(NetInput(tokens=tokens, **inputs)).logits()


def test_padding_and_segments_are_not_seen():
    tokens = jnp.arange(8)[None]
    changed = tokens.at[0, 5:].set(20)
    valid = jnp.arange(8)[None] < 5
    for inputs in (dict(is_valid=valid), dict(segment_ids=(~valid).astype(jnp.int32))):
        a, b = (answer(x, **inputs) for x in (tokens, changed))
        np.testing.assert_allclose(a[:, :5], b[:, :5], rtol=1e-5, atol=1e-5)
        assert np.abs(a[:, 5:] - b[:, 5:]).max() > 0.1
    a, b = (answer(x) for x in (tokens, changed))
    assert np.abs(a[:, :5] - b[:, :5]).max() > 0.1


def test_a_prompt_does_not_see_what_is_sampled():
    tokens = jnp.arange(8)[None]
    t = jnp.where(jnp.arange(8)[None] < 3, 0.0, 0.7)
    a, b = (answer(x, t=t) for x in (tokens, tokens.at[0, 6].set(20)))
    np.testing.assert_allclose(a[:, :3], b[:, :3], rtol=1e-5, atol=1e-5)
    assert np.abs(a[:, 3:] - b[:, 3:]).max() > 0.1


def test_it_has_gradients_under_every_remat():
    tokens = jnp.arange(8)[None]

    def loss(params, remat):
        network = ScaledTransformer(width=16, depth=2, heads=2, dtype="float32", remat=remat)
        return jnp.square(
            denoiser(network, COLUMNS, params)(NetInput(tokens=tokens)).logits()
        ).sum()

    params = some_params()
    slopes = [jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in ("none", "blocks")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), *slopes)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(slopes[0]))


def test_it_is_told_no_noise_level(key):
    denoise = denoiser(SCALED, COLUMNS, init(SCALED, key, COLUMNS), condition=lambda t: t)
    with pytest.raises(ValueError, match="no input for the noise level"):
        denoise(NetInput(tokens=jnp.zeros((1, 4), jnp.int32), t=jnp.ones((1, 1))))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(width=36, heads=4),
        dict(depth=0),
        dict(hidden=-1),
        dict(dropout=1.0),
        dict(dtype="float16"),
        dict(remat="all"),
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises((ValueError, TypeCheckError), match=str(next(iter(wrong.values())))):
        ScaledTransformer(**wrong)
