"""BERT and ModernBERT, as in `transformers`: the networks of masked language modelling."""

from typing import Any

from mdlm.errors import InputError
from mdlm.interop.layout import Config, Layout, Parts
from mdlm.interop.layouts.decoders import in_layers
from mdlm.interop.table import Table
from mdlm.models.bert import Bert
from mdlm.models.modern_bert import ModernBert
from mdlm.samplers.parallel import Parallel

LAYER = "bert.encoder.layer.{layer}."
BERT = {
    "embed.table": "bert.embeddings.word_embeddings.weight",
    "positions.table": "bert.embeddings.position_embeddings.weight",
    "token_types.table": "bert.embeddings.token_type_embeddings.weight",
    "embed_norm.scale": "bert.embeddings.LayerNorm.weight",
    "embed_norm.bias": "bert.embeddings.LayerNorm.bias",
    "transform.dense.kernel": "cls.predictions.transform.dense.weight",
    "transform.dense.bias": "cls.predictions.transform.dense.bias",
    "transform.norm.scale": "cls.predictions.transform.LayerNorm.weight",
    "transform.norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "head_bias": "cls.predictions.bias",
}
OF_LAYERS = {
    "attn_out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.inner": "intermediate.dense",
    "mlp.outer": "output.dense",
    "norm2": "output.LayerNorm",
}
IGNORED = r"cls\.predictions\.decoder\..*|cls\.seq_relationship\..*|bert\.pooler\..*"
IGNORED += r"|bert\.embeddings\.position_ids"
MODERN = {
    "embed.table": "model.embeddings.tok_embeddings.weight",
    "embed_norm.scale": "model.embeddings.norm.weight",
    "norm.scale": "model.final_norm.weight",
    "transform.dense.kernel": "head.dense.weight",
    "transform.norm.scale": "head.norm.weight",
    "head_bias": "decoder.bias",
}
MODERN_LAYER = {
    "norm1.scale": "attn_norm.weight",
    "qkv.kernel": "attn.Wqkv.weight",
    "attn_out.kernel": "attn.Wo.weight",
    "norm2.scale": "mlp_norm.weight",
    "mlp.inner.kernel": "mlp.Wi.weight",
    "mlp.outer.kernel": "mlp.Wo.weight",
}


def bert_table(_: Bert) -> Table:
    """Returns the names of BERT's tensors."""
    qkv = [f"attention.self.{name}" for name in ("query", "key", "value")]
    block: dict[str, Any] = {
        "qkv.kernel": tuple(f"{name}.weight" for name in qkv),
        "qkv.bias": tuple(f"{name}.bias" for name in qkv),
    }
    for path, name in OF_LAYERS.items():
        first = "scale" if path.startswith("norm") else "kernel"
        block |= {f"{path}.{first}": f"{name}.weight", f"{path}.bias": f"{name}.bias"}
    return BERT | in_layers(block, LAYER)


def modern_table(_: ModernBert) -> Table:
    """Returns the names of ModernBERT's tensors. Its first layer has no norm before attention."""
    first = {path: name for path, name in MODERN_LAYER.items() if path != "norm1.scale"}
    rest = in_layers(MODERN_LAYER, "model.layers.{layer+1}.", "blocks.rest")
    return MODERN | in_layers(first, "model.layers.{layer}.", "blocks.first") | rest


def _bert(config: Config) -> Parts:
    config.only(hidden_act="gelu", position_embedding_type="absolute", is_decoder=False)
    config.only(tie_word_embeddings=True)
    network = Bert(
        width=config.integer("hidden_size"),
        depth=config.integer("num_hidden_layers"),
        heads=config.integer("num_attention_heads"),
        hidden=config.integer("intermediate_size"),
        norm_epsilon=config.number("layer_norm_eps", 1e-12),
        positions=config.integer("max_position_embeddings"),
        token_types=config.integer("type_vocab_size", 2),
        columns=config.integer("vocab_size"),
    )
    return Parts(
        network=network,
        sampler=Parallel(temperature=0.0),
        length=network.positions,
        pad=config.token("pad_token_id"),
    )


def _modern(config: Config) -> Parts:
    config.only(hidden_activation="gelu", attention_bias=False, mlp_bias=False, norm_bias=False)
    config.only(classifier_bias=False, decoder_bias=True, tie_word_embeddings=True)
    bases = config.values.get("rope_parameters")  # of transformers 5
    base = lambda kind, old, usual: (
        float(bases[kind]["rope_theta"])
        if isinstance(bases, dict) and isinstance(bases.get(kind), dict)
        else config.number(old, usual)
    )
    network = ModernBert(
        width=config.integer("hidden_size"),
        depth=config.integer("num_hidden_layers"),
        heads=config.integer("num_attention_heads"),
        hidden=config.integer("intermediate_size"),
        norm_epsilon=config.number("norm_eps", 1e-5),
        global_every=config.integer("global_attn_every_n_layers", 3),
        window=config.integer("local_attention", 128),
        rotary_base=base("full_attention", "global_rope_theta", 160000.0),
        local_rotary_base=base("sliding_attention", "local_rope_theta", 10000.0),
        columns=config.integer("vocab_size"),
    )
    return Parts(
        network=network,
        sampler=Parallel(temperature=0.0),
        length=config.integer("max_position_embeddings", 8192),
        pad=config.token("pad_token_id"),
    )


def _check(network: Any, kind: type, architecture: str) -> None:
    if not isinstance(network, kind):
        name = type(network).__name__
        raise InputError(f"network={name}(...): {architecture} is a {kind.__name__}")
    plain: dict[str, Any] = dict(logit_cap=None, qk_norm=False, kv_heads=0, head_width=0)
    plain |= {"use_bias": True} if kind is Bert else {}
    for name, value in plain.items():
        if getattr(network, name) != value:
            raise InputError(f"{name}={getattr(network, name)!r}: {architecture} has {value!r}")


def _common(network: Any) -> dict[str, Any]:
    return {
        "hidden_size": network.width,
        "num_hidden_layers": network.depth,
        "num_attention_heads": network.heads,
        "intermediate_size": network.hidden_width,
        "tie_word_embeddings": True,
    }


def _bert_config(network: Any, length: int) -> dict[str, Any]:
    _check(network, Bert, "BERT")
    return _common(network) | {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "layer_norm_eps": network.norm_epsilon,
        "max_position_embeddings": network.positions,
        "type_vocab_size": network.token_types,
    }


def _modern_config(network: Any, length: int) -> dict[str, Any]:
    _check(network, ModernBert, "ModernBERT")
    return _common(network) | {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "hidden_activation": "gelu",
        "norm_eps": network.norm_epsilon,
        "global_attn_every_n_layers": network.global_every,
        "local_attention": network.window,
        "global_rope_theta": network.rotary_base,
        "local_rope_theta": network.local_rotary_base,
        "max_position_embeddings": length,
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "decoder_bias": True,
        "classifier_bias": False,
    }


LAYOUTS = (
    Layout(
        name="bert",
        model_types=("bert",),
        parts=_bert,
        table=bert_table,
        ignored=IGNORED,
        renames=((".gamma", ".weight"), (".beta", ".bias")),
        in_transformers=True,
        config=_bert_config,
    ),
    Layout(
        name="modernbert",
        model_types=("modernbert",),
        parts=_modern,
        table=modern_table,
        ignored=r"decoder\.weight",
        in_transformers=True,
        config=_modern_config,
    ),
)
