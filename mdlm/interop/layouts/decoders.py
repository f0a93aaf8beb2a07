"""LLaMA, Qwen2, Qwen3, and the diffusion models with their tensors: Dream, SDAR, dLLM's A2D.

LLaMA, Qwen2, Qwen3   causal, as in `transformers`
a2d-*                 the same networks converted to diffusion by dLLM: attend to everything
Dream                 attends to everything; logits about a token come from the one before it
SDAR                  attends to diffusion blocks
"""

from collections.abc import Callable
from typing import Any

from mdlm.errors import InputError
from mdlm.interop.layout import Config, Layout, Parts
from mdlm.interop.table import Table
from mdlm.models.decoder import Decoder
from mdlm.models.rotary import LinearScaling, Llama3Scaling, Scaling
from mdlm.objectives.autoregressive import Autoregressive
from mdlm.objectives.block import BlockNelbo
from mdlm.samplers.base import Sampler
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.samplers.parallel import Parallel, ParallelBlocks
from mdlm.samplers.unmasking_rules import Expected, Share, Threshold

BLOCK = {
    "norm1.scale": "input_layernorm.weight",
    "norm2.scale": "post_attention_layernorm.weight",
    "attn_out.kernel": "self_attn.o_proj.weight",
    "mlp.inner.kernel": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.outer.kernel": "mlp.down_proj.weight",
}
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def table(network: Decoder) -> Table:
    """Returns the names that `transformers` gives to the tensors of LLaMA and Qwen."""
    block: dict[str, Any] = dict(BLOCK)
    block["qkv.kernel"] = tuple(f"{name}.weight" for name in QKV)
    if network.qkv_bias:
        block["qkv.bias"] = tuple(f"{name}.bias" for name in QKV)
    if network.qk_norm:
        block["q_norm.scale"] = "self_attn.q_norm.weight"
        block["k_norm.scale"] = "self_attn.k_norm.weight"
    return in_layers(block, "model.layers.{layer}.") | {
        "embed.table": "model.embed_tokens.weight",
        "norm.scale": "model.norm.weight",
        **({} if network.tied else {"head.kernel": "lm_head.weight"}),
    }


def in_layers(block: dict[str, Any], prefix: str, stack: str = "blocks") -> dict[str, Any]:
    """Returns the table of all blocks of a stack from that of one."""

    def named(entry: Any) -> Any:
        return prefix + entry if isinstance(entry, str) else tuple(prefix + name for name in entry)

    return {f"{stack}.{path}": named(entry) for path, entry in block.items()}


def network_of(config: Config, **options: Any) -> Decoder:
    """Returns the network of a config.json. Raises InputError for options that it lacks."""
    config.only(hidden_act="silu", mlp_bias=False, use_sliding_window=False, attention_bias=False)
    heads, width = config.integer("num_attention_heads"), config.integer("hidden_size")
    size = config.integer("head_dim", 0)
    return Decoder(
        width=width,
        depth=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_width=0 if size * heads == width else size,  # 0: width / heads
        hidden=config.integer("intermediate_size"),
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        tied=config.flag("tie_word_embeddings"),
        columns=config.integer("vocab_size"),
        **rotary_of(config),
        **options,
    )


def rotary_of(config: Config) -> dict[str, Any]:
    """Returns the options of rotary embeddings. `rope_parameters`, of transformers 5, has all of
    them; before, `rope_scaling` has the scaling alone. Raises InputError for other kinds of scaling
    than "default", "linear" and "llama3"."""
    name = "rope_parameters" if config.values.get("rope_parameters") else "rope_scaling"
    found = config.values.get(name) or {}
    if not isinstance(found, dict):
        raise InputError(f"{config.title}: {name}={found!r:.60} is not an object")
    own = Config(found, f"{config.title}: {name}")
    either = lambda value, usual: own.number(value, config.number(value, usual))
    return dict(
        rotary_base=either("rope_theta", 10000.0),
        rotary_fraction=either("partial_rotary_factor", 1.0),
        rotary_scaling=_scaling(own),
    )


def _scaling(config: Config) -> Scaling | None:
    kind = config.text("rope_type", config.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=config.number("factor"))
    if kind == "llama3":
        return Llama3Scaling(
            factor=config.number("factor"),
            low=config.number("low_freq_factor"),
            high=config.number("high_freq_factor"),
            original=config.integer("original_max_position_embeddings"),
        )
    raise InputError(
        f"{config.title}: rope_type={kind!r:.60} is not supported, only default, linear and llama3"
    )


def _written(scaling: Scaling | None) -> dict[str, Any]:
    """Returns what config.json says of a scaling, nothing of none."""
    if scaling is None:
        return {}
    if isinstance(scaling, LinearScaling):
        return {"rope_scaling": {"rope_type": "linear", "factor": scaling.factor}}
    return {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }
    }


def _common(config: Config) -> dict[str, Any]:
    return dict(
        length=config.integer("max_position_embeddings", 2048),
        mask=config.token("mask_token_id"),
        bos=config.token("bos_token_id"),
        eos=config.token("eos_token_id"),
        pad=config.token("pad_token_id"),
    )


def _causal(**options: Any) -> Callable[[Config], Parts]:
    def parts(config: Config) -> Parts:
        network = network_of(config, attends="causal", **options)
        return Parts(
            network=network,
            objective=Autoregressive(),
            sampler=LeftToRight(),
            **{**_common(config), "mask": None},
        )

    return parts


_IN_BLOCKS = Parallel(rule=Share(steps=32), block_size=32, temperature=0.0)
_BY_ENTROPY = Parallel(
    order="entropy", rule=Expected(steps=512, eps=0.001), temperature=0.0, priority="processed"
)
"""Dream's own settings, at temperature 0."""


def _diffusion(sampler: Sampler, **options: Any) -> Callable[[Config], Parts]:
    def parts(config: Config) -> Parts:
        # A setting of the checkpoint; dLLM trains without it, Dream with it.
        shift = config.flag("right_shift_logits", options.get("shift", False))
        network = network_of(config, **{**options, "shift": shift})
        return Parts(network=network, sampler=sampler, **_common(config))

    return parts


def _sdar(config: Config) -> Parts:
    size = config.integer("block_size", 4)
    network = network_of(config, qk_norm="separate", attends="blocks", block_size=size)
    return Parts(
        network=network,
        objective=BlockNelbo(block_size=size),
        sampler=ParallelBlocks(rule=Threshold(tau=0.9), block_size=size, temperature=0.0),
        **_common(config),
    )


def config_of(
    model_type: str,
    architecture: str,
    more: Callable[[Decoder], dict[str, Any]] = lambda _: {},
    **due: Any,
) -> Callable[[Any, int], dict[str, Any]]:
    """Returns the function that writes config.json for networks with these options, `due`; an
    option that is `...` may be any. `more` are values of a network beside the common ones."""

    def config(network: Any, length: int) -> dict[str, Any]:
        usual: dict[str, Any] = dict(norm="rms", mlp="swiglu", use_bias=False, logit_cap=None)
        usual |= dict(rotary_fraction=1.0, experts=None)
        for name, value in {**usual, **due}.items():
            if value is ... and isinstance(network, Decoder):
                continue
            if not isinstance(network, Decoder) or getattr(network, name) != value:
                found = type(network).__name__
                if isinstance(network, Decoder):
                    found = f"{name}={getattr(network, name)!r}"
                raise InputError(
                    f"network: {architecture} is a Decoder with {name}={value!r}, not {found}"
                )
        heads, kv_heads, size = network.heads_shape
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": network.width,
            "num_hidden_layers": network.depth,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": size,
            "intermediate_size": network.hidden_width,
            "hidden_act": "silu",
            "attention_bias": False,
            "rope_theta": network.rotary_base,
            "rms_norm_eps": 1e-6 if network.norm_epsilon is None else network.norm_epsilon,
            "tie_word_embeddings": network.tied,
            "max_position_embeddings": length,
            **({"right_shift_logits": network.shift} if network.attends == "all" else {}),
            **({"block_size": network.block_size} if network.attends == "blocks" else {}),
            **_written(network.rotary_scaling),
            **more(network),
        }

    return config


_LLAMA: Any = dict(qk_norm=False, qkv_bias=False)
_QWEN2: Any = dict(qk_norm=False, qkv_bias=True)
_QWEN3: Any = dict(qk_norm="separate", qkv_bias=False)
_ROTARY = r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"


def _layout(name: str, model_type: str, parts: Any, architecture: str, **due: Any) -> Layout:
    config = config_of(model_type, architecture, **due)
    return Layout(
        name=name,
        model_types=(model_type,),
        parts=parts,
        table=table,
        ignored=_ROTARY,
        in_transformers=due["attends"] == "causal",
        config=config,
    )


def _both(name: str, architecture: str, options: dict[str, Any]) -> tuple[Layout, Layout]:
    """Returns the layout of a causal network, and that of one converted to diffusion by dLLM."""
    causal = _layout(
        name, name, _causal(**options), f"{architecture}ForCausalLM", attends="causal", **options
    )
    all_ = _layout(
        f"a2d-{name}",
        f"a2d-{name}",
        _diffusion(_IN_BLOCKS, **options),
        f"A2D{architecture}LMHeadModel",
        attends="all",
        **options,
    )
    return causal, all_


LAYOUTS: tuple[Layout, ...] = (
    *_both("llama", "Llama", _LLAMA),
    *_both("qwen2", "Qwen2", _QWEN2),
    *_both("qwen3", "Qwen3", _QWEN3),
    _layout(
        "dream",
        "Dream",
        _diffusion(_BY_ENTROPY, **_QWEN2, shift=True),
        "DreamModel",
        attends="all",
        shift=True,
        **_QWEN2,
    ),
    _layout("sdar", "sdar", _sdar, "SDARForCausalLM", attends="blocks", shift=False, **_QWEN3),
)
