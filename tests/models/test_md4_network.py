"""MD4's network against the values of its public code, and its options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mdlm.models.md4 import MD4Transformer, gated_width, sinusoid
from mdlm.models.network import denoiser, init, shapes
from mdlm.types import NetInput

WIDTH, TOKENS = 16, 11
COLUMNS = TOKENS + 1  # the last is the mask's
TINY = MD4Transformer(width=WIDTH, depth=2, heads=2, cond_dim=8, dtype="float32")
VARIANTS = {
    "glu_adalnzero_embedin": dataclasses.replace(TINY, mlp="glu"),
    "swiglu_adaln_outside": dataclasses.replace(
        TINY, mlp="swiglu", zero_modulation=False, embed_width=8
    ),
    "geglu_notime": dataclasses.replace(TINY, mlp="geglu", cond_dim=0),
}
CLOSE = dict(rtol=1e-5, atol=2e-5)


def stored(values, variant, network):
    """The stored weights as our parameters: named anew, blocks stacked, q, k, v and the halves of
    a gated layer side by side. Their head has no column for the mask; ours gets zeros."""
    prefix = f"{variant}/params/"
    theirs = {k.removeprefix(prefix): values[k] for k in values.files if k.startswith(prefix)}
    take = lambda name: theirs.pop(name)
    layer = lambda name: {"kernel": take(f"{name}/kernel"), "bias": take(f"{name}/bias")}
    kernel = lambda *names: {"kernel": np.concatenate([take(f"{n}/kernel") for n in names], 1)}

    def block(i):
        at = f"Transformer_0/TransformerBlock_{i}/"
        parts = {
            "qkv": kernel(*(f"{at}attention/w{x}" for x in "qkv")),
            "attn_out": kernel(f"{at}attention/wo"),
            "mlp": {
                "inner": kernel(f"{at}feed_forward/w1", f"{at}feed_forward/w3"),
                "outer": kernel(f"{at}feed_forward/w2"),
            },
        }
        if network.cond_dim:
            return parts | {"modulation": layer(f"{at}Dense_0")}
        return parts | {f"norm{j + 1}": {"scale": take(f"{at}RMSNorm_{j}/scale")} for j in (0, 1)}

    blocks = [block(i) for i in range(network.depth)]
    params = {"blocks": jax.tree.map(lambda *a: np.stack(a), *blocks)}
    dense = [f"Transformer_0/Dense_{i}" for i in range(3)]
    if network.embed_width:
        params |= {"embed": {"table": take("Embed_0/embedding")}, "widen": layer(dense.pop(0))}
    else:
        params |= {"embed": {"table": take("Transformer_0/Embed_0/embedding")}}
    if network.cond_dim:
        params["time"] = {
            "inner": layer("CondEmbedding_0/dense0"),
            "outer": layer("CondEmbedding_0/Dense_0"),
        }
        params["modulation"] = layer(dense.pop(0))
    else:
        params["norm"] = {"scale": take("Transformer_0/RMSNorm_0/scale")}
    head = np.pad(take(f"{dense.pop(0)}/kernel"), ((0, 0), (0, 1)))
    params["head"] = {"kernel": head}
    assert not theirs, f"not used: {sorted(theirs)}"
    expected = jax.tree.map(lambda a: a.shape, shapes(network, COLUMNS))
    assert jax.tree.map(np.shape, params) == expected
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.golden
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(golden, variant):
    values, network = golden("md4_network_tiny.npz"), VARIANTS[variant]
    condition = (lambda t: t) if network.cond_dim else None
    denoise = denoiser(network, COLUMNS, stored(values, variant, network), condition=condition)
    t = jnp.asarray(values["t"])
    tokens = jnp.asarray(values["input_ids"])
    assert (tokens == TOKENS).any(), "no mask among the tokens"
    logits = denoise(NetInput(tokens=tokens, t=t[:, None])).logits()
    np.testing.assert_allclose(logits[..., :TOKENS], values[f"{variant}/logits"], **CLOSE)
    assert (logits[..., TOKENS] == 0).all()
    # The same with the time told token by token.
    told = jnp.broadcast_to(t[:, None], tokens.shape)
    by_token = denoise(NetInput(tokens=tokens, t=told)).logits()
    np.testing.assert_allclose(by_token, logits, **CLOSE)


@pytest.mark.golden
def test_time_embedding(golden):
    values = golden("md4_network_tiny.npz")
    embedding = sinusoid(jnp.asarray(values["t"])[:, None], 8)[:, 0]
    np.testing.assert_allclose(embedding, values["timestep_embedding_t1000_dim8"], **CLOSE)


def test_gated_width():
    assert [gated_width(width) for width in (16, 24, 256, 768)] == [64, 64, 704, 2048]


@pytest.mark.parametrize("zero", [True, False])
def test_zero_modulation_starts_each_block_as_the_identity(zero, key):
    network = dataclasses.replace(TINY, zero_modulation=zero)
    params = init(network, key, COLUMNS)
    for modulation in (params["modulation"], params["blocks"]["modulation"]):
        assert all((array == 0).all() == zero for array in jax.tree.leaves(modulation))
    tokens = jnp.arange(12)[None] % COLUMNS
    other = init(network, jax.random.fold_in(key, 1), COLUMNS)
    swapped = params | {"blocks": {**other["blocks"], "modulation": params["blocks"]["modulation"]}}
    hidden, others = (
        denoiser(network, COLUMNS, p)(NetInput(tokens=tokens)).hidden for p in (params, swapped)
    )
    assert bool(jnp.array_equal(hidden, others)) == zero


def test_a_network_without_time_is_told_none(key):
    network = dataclasses.replace(TINY, cond_dim=0)
    denoise = denoiser(network, COLUMNS, init(network, key, COLUMNS), condition=lambda t: t)
    with pytest.raises(ValueError, match="cond_dim=0 has no input"):
        denoise(NetInput(tokens=jnp.zeros((1, 4), jnp.int32), t=jnp.ones((1, 1))))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(width=36, heads=4),
        dict(depth=0),
        dict(cond_dim=7),
        dict(cond_dim=2),
        dict(cond_dim=-4),
        dict(embed_width=-1),
        dict(dropout=1.0),
        dict(mlp="gelu"),
        dict(remat="all"),
    ],
)
def test_wrong_options_are_refused(wrong):
    value = wrong.get("width", next(iter(wrong.values())))
    # The import hook of the tests refuses a word that is not listed before we can.
    with pytest.raises((ValueError, TypeCheckError), match=str(value)):
        MD4Transformer(**wrong)
