"""LLaDA2 (arXiv:2512.15745): a mixture of experts that attends to diffusion blocks."""

from typing import Any

from mdlm.errors import InputError
from mdlm.interop.layout import Config, Layout, Parts
from mdlm.interop.layouts.decoders import config_of, in_layers, network_of
from mdlm.interop.table import Table
from mdlm.models.decoder import Decoder
from mdlm.models.experts import Experts
from mdlm.objectives.block import BlockNelbo
from mdlm.samplers.blocks import BlockByBlock

BLOCK_SIZE = 32
"""Tokens of a diffusion block, which config.json does not say."""
ATTENTION: dict[str, Any] = {
    "norm1.scale": "input_layernorm.weight",
    "norm2.scale": "post_attention_layernorm.weight",
    "qkv.kernel": "attention.query_key_value.weight",
    "q_norm.scale": "attention.query_layernorm.weight",
    "k_norm.scale": "attention.key_layernorm.weight",
    "attn_out.kernel": "attention.dense.weight",
}
EXPERT = "mlp.experts.{expert}."


def _mlp(path: str, name: str) -> dict[str, Any]:
    return {
        f"{path}.inner.kernel": (f"{name}gate_proj.weight", f"{name}up_proj.weight"),
        f"{path}.outer.kernel": f"{name}down_proj.weight",
    }


def table(network: Decoder) -> Table:
    """Returns the names of the tensors."""
    experts = network.experts
    assert experts is not None
    mixed = ATTENTION | _mlp("mlp", EXPERT)
    mixed["mlp.router.kernel"] = "mlp.gate.weight"
    mixed["mlp.selection_bias"] = "mlp.gate.expert_bias"
    if experts.shared:
        mixed |= _mlp("mlp.shared", "mlp.shared_experts.")
    outside = {
        "embed.table": "model.word_embeddings.weight",
        "norm.scale": "model.norm.weight",
        **({} if network.tied else {"head.kernel": "lm_head.weight"}),
    }
    if not experts.dense:
        return outside | in_layers(mixed, "model.layers.{layer}.")
    dense = in_layers(ATTENTION | _mlp("mlp", "mlp."), "model.layers.{layer}.", "blocks.first")
    rest = in_layers(mixed, f"model.layers.{{layer+{experts.dense}}}.", "blocks.rest")
    return outside | dense | rest


def parts(config: Config) -> Parts:
    config.only(norm_head=False, use_bias=False, use_qk_norm=True, use_qkv_bias=False)
    experts = Experts(
        count=config.integer("num_experts"),
        chosen=config.integer("num_experts_per_tok"),
        groups=config.integer("n_group", 1),
        kept_groups=config.integer("topk_group", 1),
        hidden=config.integer("moe_intermediate_size"),
        shared=config.integer("num_shared_experts", 0),
        scaling=config.number("routed_scaling_factor", 1.0),
        dense=config.integer("first_k_dense_replace", 0),
    )
    network = network_of(
        config,
        qk_norm="separate",
        experts=experts,
        attends="blocks",
        block_size=config.integer("block_size", BLOCK_SIZE),
    )
    return Parts(
        network=network,
        objective=BlockNelbo(block_size=network.block_size),
        sampler=BlockByBlock(block_size=network.block_size),
        length=config.integer("max_position_embeddings", 8192),
        mask=config.token("mask_token_id"),
        eos=config.token("eos_token_id"),
        pad=config.token("pad_token_id"),
    )


def _more(network: Decoder) -> dict[str, Any]:
    """Returns the values of config.json that other decoders do not have."""
    experts = network.experts
    if experts is None:
        raise InputError("network: LLaDA2MoeModelLM is a Decoder with experts, not experts=None")
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.chosen,
        "n_group": experts.groups,
        "topk_group": experts.kept_groups,
        "moe_intermediate_size": experts.hidden,
        "num_shared_experts": experts.shared,
        "routed_scaling_factor": experts.scaling,
        "first_k_dense_replace": experts.dense,
        "partial_rotary_factor": network.rotary_fraction,
        "norm_head": False,
        "use_bias": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
    }


LAYOUTS = (
    Layout(
        name="llada2",
        model_types=("llada2_moe",),
        parts=parts,
        table=table,
        config=config_of(
            "llada2_moe",
            "LLaDA2MoeModelLM",
            _more,
            attends="blocks",
            shift=False,
            qk_norm="separate",
            qkv_bias=False,
            experts=...,
            rotary_fraction=...,
        ),
    ),
)
