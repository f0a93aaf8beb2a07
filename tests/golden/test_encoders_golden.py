"""BERT and ModernBERT against values of `transformers`, with its weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm.models import Bert, ModernBert
from mdlm.models.network import denoiser, shapes
from mdlm.types import NetInput

pytestmark = pytest.mark.golden
COLUMNS = 80
CLOSE: dict = dict(rtol=1e-5, atol=1e-4)
BERT = Bert(width=32, depth=2, heads=4, hidden=64, positions=24, dtype="float32")
MODERN = ModernBert(
    width=32, depth=4, heads=4, hidden=40, global_every=3, window=8, dtype="float32"
)
# The name of a layer's norm, and of a `Linear`, in each layout.
BERT_BLOCK = {
    "norm1": "attention.output.LayerNorm",
    "attn_out": "attention.output.dense",
    "norm2": "output.LayerNorm",
    "mlp/inner": "intermediate.dense",
    "mlp/outer": "output.dense",
}
MODERN_BLOCK = {
    "norm1": "attn_norm",
    "qkv": "attn.Wqkv",
    "attn_out": "attn.Wo",
    "norm2": "mlp_norm",
    "mlp/inner": "mlp.Wi",
    "mlp/outer": "mlp.Wo",
}


def tree(flat):
    """A nested dict from paths with slashes."""
    nested = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        functools.reduce(lambda at, part: at.setdefault(part, {}), parents, nested)[name] = value
    return nested


def layer(stored, own, name):
    """A norm or a `Linear` of the file, by our paths."""
    weight = stored[f"{name}.weight"]
    found = {f"{own}/{'kernel' if weight.ndim == 2 else 'scale'}": weight.T}
    if f"{name}.bias" in stored:
        found[f"{own}/bias"] = stored[f"{name}.bias"]
    return found


def stacked(layers):
    return {path: np.stack([flat[path] for flat in layers]) for path in layers[0]}


def bert_params(stored):
    def block(i):
        prefix = f"bert.encoder.layer.{i}."
        parts = [f"{prefix}attention.self.{part}." for part in ("query", "key", "value")]
        flat = {
            "blocks/qkv/kernel": np.concatenate([stored[f"{p}weight"].T for p in parts], 1),
            "blocks/qkv/bias": np.concatenate([stored[f"{p}bias"] for p in parts]),
        }
        for own, name in BERT_BLOCK.items():
            flat |= layer(stored, f"blocks/{own}", prefix + name)
        return flat

    embeddings = "bert.embeddings."
    return tree(
        {
            "embed/table": stored[f"{embeddings}word_embeddings.weight"],
            "positions/table": stored[f"{embeddings}position_embeddings.weight"],
            "token_types/table": stored[f"{embeddings}token_type_embeddings.weight"],
            "head_bias": stored["cls.predictions.bias"],
            **layer(stored, "embed_norm", f"{embeddings}LayerNorm"),
            **layer(stored, "transform/dense", "cls.predictions.transform.dense"),
            **layer(stored, "transform/norm", "cls.predictions.transform.LayerNorm"),
            **stacked([block(i) for i in range(2)]),
        }
    )


def modern_params(stored):
    def block(i):
        flat, stack = {}, "blocks/rest/" if i else "blocks/first/"
        for own, name in MODERN_BLOCK.items():
            if f"model.layers.{i}.{name}.weight" in stored:
                flat |= layer(stored, stack + own, f"model.layers.{i}.{name}")
        return flat

    return tree(
        {
            "embed/table": stored["model.embeddings.tok_embeddings.weight"],
            "head_bias": stored["decoder.bias"],
            **layer(stored, "embed_norm", "model.embeddings.norm"),
            **layer(stored, "norm", "model.final_norm"),
            **layer(stored, "transform/dense", "head.dense"),
            **layer(stored, "transform/norm", "head.norm"),
            **stacked([block(0)]),
            **stacked([block(i) for i in range(1, 4)]),
        }
    )


@functools.partial(jax.jit, static_argnums=0)
def logits(network, params, inputs):
    return denoiser(network, COLUMNS, params)(inputs).logits()


def compare(network, params, values, with_mask, without, **types):
    found = jax.tree.map(lambda a: a.shape, jax.tree.map(np.asarray, params))
    assert found == jax.tree.map(lambda a: a.shape, shapes(network, COLUMNS))
    tokens = jnp.asarray(values["x"], jnp.int32)
    plain = logits(network, params, NetInput(tokens=tokens))
    np.testing.assert_allclose(plain, values[without], **CLOSE)
    is_real = values["attention_mask"].astype(bool)
    assert 0 < is_real.sum() < is_real.size
    inputs = NetInput(tokens=tokens, is_valid=jnp.asarray(is_real), **types)
    masked = np.asarray(logits(network, params, inputs))
    np.testing.assert_allclose(masked[is_real], values[with_mask][is_real], **CLOSE)
    # All that the values are told apart by was read.
    assert not np.allclose(masked[is_real], plain[is_real], **CLOSE)


def test_bert(golden):
    params = bert_params(golden("interop_bert_mlm.safetensors"))
    values = golden("interop_bert.npz")
    types = jnp.asarray(values["token_type_ids"], jnp.int32)
    assert types.max() == 1
    names = "bert__logits", "bert__logits_nomask_type0"
    compare(BERT, params, values, *names, token_types=types)


def test_modern_bert(golden):
    params = modern_params(golden("interop_modernbert_mlm.safetensors"))
    values = golden("interop_bert.npz")
    compare(MODERN, params, values, "modernbert__logits", "modernbert__logits_nomask")
