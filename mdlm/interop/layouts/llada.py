"""LLaDA (arXiv:2502.09992): the decoder shape, attending to everything, with names of its own."""

from typing import Any

from mdlm.errors import InputError
from mdlm.interop.layout import Config, Layout, Parts
from mdlm.interop.layouts.decoders import in_layers
from mdlm.interop.table import Table
from mdlm.models.decoder import Decoder
from mdlm.samplers.parallel import Parallel
from mdlm.samplers.unmasking_rules import Share

BLOCK = {
    "norm1.scale": "attn_norm.weight",
    "norm2.scale": "ff_norm.weight",
    "qkv.kernel": ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
    "attn_out.kernel": "attn_out.weight",
    "mlp.inner.kernel": ("ff_proj.weight", "up_proj.weight"),
    "mlp.outer.kernel": "ff_out.weight",
}


def table(network: Decoder) -> Table:
    """Returns the names of the tensors."""
    block: dict[str, Any] = dict(BLOCK)
    if network.qkv_bias:
        block["qkv.bias"] = ("q_proj.bias", "k_proj.bias", "v_proj.bias")
    return in_layers(block, "model.transformer.blocks.{layer}.") | {
        "embed.table": "model.transformer.wte.weight",
        "norm.scale": "model.transformer.ln_f.weight",
        **({} if network.tied else {"head.kernel": "model.transformer.ff_out.weight"}),
    }


def parts(config: Config) -> Parts:
    config.only(
        activation_type="silu",
        alibi=False,
        attention_layer_norm=False,
        block_group_size=1,
        block_type="llama",
        include_bias=False,
        input_emb_norm=False,
        layer_norm_type="rms",
        rope=True,
        scale_logits=False,
    )
    width, heads = config.integer("d_model"), config.integer("n_heads")
    shared = 1 if config.values.get("multi_query_attention") else heads
    network = Decoder(
        width=width,
        depth=config.integer("n_layers"),
        heads=heads,
        kv_heads=config.integer("n_kv_heads", shared),
        hidden=config.integer("mlp_hidden_size", config.integer("mlp_ratio", 4) * width),
        rotary_base=config.number("rope_theta", 10000.0),
        norm_epsilon=config.number("rms_norm_eps", 1e-5),
        qkv_bias=config.flag("include_qkv_bias"),
        tied=config.flag("weight_tying"),
        # The table may have more rows than the vocabulary.
        columns=config.integer("embedding_size", config.integer("vocab_size")),
    )
    return Parts(
        network=network,
        sampler=Parallel(rule=Share(steps=32), block_size=32, temperature=0.0),
        length=config.integer("max_sequence_length", 4096),
        mask=config.token("mask_token_id"),
        eos=config.token("eos_token_id"),
        pad=config.token("pad_token_id"),
    )


def config(network: Any, length: int) -> dict[str, Any]:
    due = dict(attends="all", shift=False, norm="rms", mlp="swiglu", use_bias=False, qk_norm=False)
    due |= dict(head_width=0, rotary_fraction=1.0, logit_cap=None)
    due |= dict(experts=None, rotary_scaling=None)
    for name, value in due.items():
        if not isinstance(network, Decoder) or getattr(network, name) != value:
            raise InputError(f"network: LLaDA is a Decoder with {name}={value!r}")
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": network.width,
        "n_layers": network.depth,
        "n_heads": network.heads,
        "n_kv_heads": network.heads_shape[1],
        "mlp_hidden_size": network.hidden_width,
        "rope": True,
        "rope_theta": network.rotary_base,
        "rms_norm_eps": 1e-6 if network.norm_epsilon is None else network.norm_epsilon,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "include_bias": False,
        "include_qkv_bias": network.qkv_bias,
        "input_emb_norm": False,
        "scale_logits": False,
        "weight_tying": network.tied,
        "max_sequence_length": length,
    }


LAYOUTS = (Layout(name="llada", model_types=("llada",), parts=parts, table=table, config=config),)
