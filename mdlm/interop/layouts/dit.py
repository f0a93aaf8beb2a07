"""MDLM, BD3-LM, Duo and SEDD: diffusion transformers with the tensors of SEDD's code.

Their networks are equal. BD3-LM's reads [noised ; clean] rows; MDLM's ignores the noise level
unless its configuration says otherwise; Duo's and SEDD's always read it.
"""

from typing import Any

import numpy as np

from mdlm.errors import InputError
from mdlm.interop.layout import Config, Layout, Parts
from mdlm.interop.layouts.decoders import in_layers
from mdlm.interop.table import Table
from mdlm.models.block import BlockDiT
from mdlm.models.causal import CausalTransformer
from mdlm.models.dit import DiT
from mdlm.models.rotary import ROTARY_BASE
from mdlm.objectives.block import BlockNelbo
from mdlm.objectives.score_entropy import ScoreEntropy
from mdlm.objectives.uniform import UniformNelbo
from mdlm.parameterizations.mean import Mean
from mdlm.parameterizations.score import Score
from mdlm.processes.masked import Masked
from mdlm.processes.uniform import Uniform
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.blocks import BlockByBlock
from mdlm.samplers.reverse import Reverse
from mdlm.samplers.score import Tweedie
from mdlm.schedules.closed_form import LogLinear

BLOCK = {
    "norm1.scale": "norm1.weight",
    "qkv.kernel": "attn_qkv.weight",
    "attn_out.kernel": "attn_out.weight",
    "norm2.scale": "norm2.weight",
    "mlp.inner.kernel": "mlp.0.weight",
    "mlp.inner.bias": "mlp.0.bias",
    "mlp.outer.kernel": "mlp.2.weight",
    "mlp.outer.bias": "mlp.2.bias",
}
MODULATED = {
    "modulation.kernel": "adaLN_modulation.weight",
    "modulation.bias": "adaLN_modulation.bias",
}
OUTSIDE = {
    "embed.table": "vocab_embed.embedding",
    "norm.scale": "output_layer.norm_final.weight",
    "head.kernel": "output_layer.linear.weight",
    "head.bias": "output_layer.linear.bias",
}
CONDITIONED = {
    "noise_level.inner.kernel": "sigma_map.mlp.0.weight",
    "noise_level.inner.bias": "sigma_map.mlp.0.bias",
    "noise_level.outer.kernel": "sigma_map.mlp.2.weight",
    "noise_level.outer.bias": "sigma_map.mlp.2.bias",
    "modulation.kernel": "output_layer.adaLN_modulation.weight",
    "modulation.bias": "output_layer.adaLN_modulation.bias",
}
WRAPPER = "backbone."
ROTARY = "rotary_emb.inv_freq"
"""A buffer of the angles, which the published files have."""
IGNORED = r"rotary_emb\.inv_freq|sampling_eps_(min|max)"
WHOLE = {"sampling_eps_min": 1e-3, "sampling_eps_max": 1.0}
"""The range of noise levels that BD3-LM trains on, which its files hold as tensors too."""
GPT2: Any = dict(tokenizer="gpt2")
"""The tokenizer of the releases, which bring none in their folder."""


def table(network: DiT | CausalTransformer) -> Table:
    """Returns the names of the tensors. Raises InputError if the published code has no such
    network."""
    check(network)
    conditioned = isinstance(network, DiT)
    block = BLOCK | (MODULATED if conditioned else {})
    outside = OUTSIDE | (CONDITIONED if conditioned else {})
    return outside | in_layers(block, "blocks.{layer}.")


def check(network: Any) -> None:
    """Raises InputError if the published code has no such network."""
    if not isinstance(network, DiT | CausalTransformer):
        raise InputError(
            f"network={type(network).__name__}(...): this layout is one of DiT, BlockDiT and"
            " CausalTransformer"
        )
    due: dict[str, Any] = dict(norm="layer", norm_epsilon=None, qk_norm=False, mlp="gelu")
    due |= dict(use_bias=True, qkv_bias=False, tied=False, logit_cap=None, hidden=0, kv_heads=0)
    due |= dict(head_width=0, rotary_base=10000.0, rotary_fraction=1.0)
    if isinstance(network, DiT):
        due |= dict(labels=0, self_conditioning=False)
    for name, value in due.items():
        if getattr(network, name) != value:
            raise InputError(
                f"{name}={getattr(network, name)!r}: the published layout supports only"
                f" {name}={value!r}"
            )
    if isinstance(network, DiT) and network.cond_dim == 0:
        raise InputError("cond_dim=0: the published layout needs a DiT with cond_dim of at least 1")


def sizes(config: Config) -> dict[str, Any]:
    """Returns the sizes of a network of MDLM, BD3-LM or Duo."""
    config.only(causal=False)
    return dict(
        width=config.integer("hidden_dim"),
        depth=config.integer("n_blocks"),
        heads=config.integer("n_heads"),
        cond_dim=config.integer("cond_dim"),
        columns=config.integer("vocab_size"),
    )


def _mdlm(config: Config) -> Parts:
    told = config.flag("time_conditioning")
    return Parts(
        network=DiT(**sizes(config)),
        sampler=Ancestral(),
        length=config.integer("model_length"),
        time_condition="sigma" if told else "none",
        mask=config.integer("vocab_size") - 1,
        **GPT2,
    )


def _bd3lm(config: Config) -> Parts:
    config.only(cross_attn=True, adaln=True)
    size = config.integer("block_size")
    told = config.flag("time_conditioning")
    return Parts(
        network=BlockDiT(**sizes(config), block_size=size),
        objective=BlockNelbo(block_size=size),
        sampler=BlockByBlock(block_size=size),
        length=config.integer("model_length"),
        time_condition="sigma" if told else "none",
        mask=config.integer("vocab_size") - 1,
        **GPT2,
    )


def _duo(config: Config) -> Parts:
    return Parts(
        network=DiT(**sizes(config)),
        process=Uniform(),
        parameterization=Mean(),
        objective=UniformNelbo(),
        sampler=Reverse(),
        length=config.integer("model_length"),
        time_condition="sigma",
        mask=config.integer("vocab_size") - 1,
        **GPT2,
    )


def is_sedd(config: Config) -> bool:
    """Returns whether a config.json is that of SEDD's training code, which has no model_type."""
    parts = (config.values.get(name) for name in ("graph", "noise", "model"))
    return all(isinstance(part, dict) for part in parts)


def _sedd(config: Config) -> Parts:
    part = lambda name: Config(config.values[name], f"{config.title}: {name}")
    graph, noise, model = part("graph"), part("noise"), part("model")
    graph.only(type="absorb")
    noise.only(type="loglinear")
    model.only(scale_by_sigma=True)
    tokens = config.integer("tokens")
    return Parts(
        network=DiT(
            width=model.integer("hidden_size"),
            depth=model.integer("n_blocks"),
            heads=model.integer("n_heads"),
            cond_dim=model.integer("cond_dim"),
            columns=tokens + 1,
        ),
        process=Masked(schedule=LogLinear()),
        parameterization=Score(),
        objective=ScoreEntropy(),
        sampler=Tweedie(),
        length=model.integer("length"),
        time_condition="sigma",
        mask=tokens,
        **GPT2,
    )


def angles(network: Any) -> np.ndarray:
    """Returns the frequencies of the rotary embedding, which the published files hold."""
    half = network.heads_shape[2] // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    return (1 / np.float32(ROTARY_BASE) ** exponent).astype(np.float32)


def buffers(network: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of a file that are no parameters."""
    more = WHOLE if isinstance(network, BlockDiT) else {}
    ends = {name: np.array(value, np.float32) for name, value in more.items()}
    return {WRAPPER + ROTARY: angles(network), **ends}


def _config(model_type: str, architecture: str, kind: type, **more: Any) -> Any:
    """Returns the function that writes config.json for networks of a class."""

    def config(network: Any, length: int) -> dict[str, Any]:
        if type(network) is not kind:
            raise InputError(
                f"network={type(network).__name__}(...): {architecture} is a {kind.__name__}"
            )
        check(network)
        block = {"block_size": network.block_size} if kind is BlockDiT else {}
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_dim": network.width,
            "n_blocks": network.depth,
            "n_heads": network.heads,
            "cond_dim": network.cond_dim,
            "dropout": network.dropout,
            "model_length": length,
            "causal": False,
            **block,
            **more,
        }

    return config


def _layout(name: str, model_type: str, parts: Any, architecture: str, kind: type, **more: Any):
    return Layout(
        name=name,
        model_types=(model_type,),
        parts=parts,
        table=table,
        ignored=IGNORED,
        wrapper=WRAPPER,
        buffers=buffers,
        config=_config(model_type, architecture, kind, **more),
    )


LAYOUTS = (
    _layout("mdlm", "mdlm", _mdlm, "MDLM", DiT, return_dict=False),
    _layout(
        "bd3lm",
        "bd3lm",
        _bd3lm,
        "BD3LM",
        BlockDiT,
        cross_attn=True,
        adaln=True,
        var_min=True,
        **WHOLE,
    ),
    _layout("duo", "DUO", _duo, "DUO", DiT, var_min=True),
    Layout(name="sedd", model_types=(), matches=is_sedd, parts=_sedd, table=table, ignored=IGNORED),
)
