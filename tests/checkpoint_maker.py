"""Folders in the form of the Hugging Face hub, from reference weights and a small tokenizer."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?;:'\"-()\n"
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}assistant "
)
MASK = dict(t63="<mask>", t62="<eot>", t61="<eos>", t60="<bos>")
ENCODER = dict(t0="[PAD]", t1="[UNK]", t2="[CLS]", t3="[SEP]", t4="[MASK]")
LAST = dict(t66="<mask>", t65="<|endoftext|>")


def tokenizer(size: int, **special: str) -> tokenizers.Tokenizer:
    """A tokenizer of `size` characters; `special` has tokens by id: `t63="<mask>"`."""
    named = {int(key[1:]): token for key, token in special.items()}
    letters = iter(LETTERS)
    vocab = {named.get(i) or next(letters): i for i in range(size)}
    built = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    built.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    built.decoder = decoders.Fuse()
    built.add_special_tokens([AddedToken(token, special=True) for token in named.values()])
    return built


def folder(path: Path, config: dict, weights: Path, tokens: tokenizers.Tokenizer | None) -> Path:
    """Writes config.json, model.safetensors and tokenizer.json into a new folder."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    shutil.copyfile(weights, path / "model.safetensors")
    if tokens is not None:
        tokens.save(str(path / "tokenizer.json"))
    return path


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A network of a public project: its weights, and where its config.json is kept.

    Args:
        weights: file of weights, without its end.
        settings: `interop_{settings}.json` has the configuration under the dotted path `config`.
        special: the tokenizer's special tokens by id.
        more: values of config.json beside those.
        chats: whether checkpoints of this layout come with a chat template.
        changes: settings with which it is imported.
    """

    weights: str
    settings: str
    config: str = "config"
    special: Mapping[str, str] = field(default_factory=lambda: MASK)
    more: Mapping[str, Any] = field(default_factory=dict)
    chats: bool = False
    changes: tuple[tuple[str, str], ...] = ()

    def source(self, path: Path, golden: Path) -> Path:
        """Writes the folder that the hub would have. `golden` is that of the reference values."""
        values = json.loads((golden / f"interop_{self.settings}.json").read_text(encoding="utf-8"))
        for key in self.config.split("."):
            values = values[key]
        tokens = tokenizer(values["vocab_size"], **self.special)
        folder(path, {**values, **self.more}, golden / f"{self.weights}.safetensors", tokens)
        if self.chats:
            (path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        return path


def _decoder(weights: str, settings: str, config: str, model_type: str | None = None) -> Golden:
    """A decoder that chats; `model_type` makes another layout of the same tensors of it."""
    more = {} if model_type is None else {"model_type": model_type, "mask_token_id": 63}
    own: Any = dict(weights=f"interop_{weights}", settings=settings, config=config, more=more)
    return Golden(chats=True, **own)


SEDD = dict(
    model_type=None,
    tokens=66,
    graph=dict(type="absorb"),
    noise=dict(type="loglinear"),
    model=dict(hidden_size=64, n_blocks=2, n_heads=4, cond_dim=32, length=32, scale_by_sigma=True),
)
GOLDENS: dict[str, Golden] = {
    "llada": _decoder("llada_mha", "llada", "configs.mha"),
    "llada_gqa": _decoder("llada_gqa", "llada", "configs.gqa"),
    "dream": _decoder("dream_untied", "dream", "configs.untied"),
    "dream_tied": _decoder("dream_tied", "dream", "configs.tied"),
    "sdar": _decoder("sdar", "sdar", "config"),
    "llama": _decoder("ar_llama", "ar", "configs.llama"),
    "qwen2": _decoder("dream_untied", "dream", "configs.untied", "qwen2"),
    "qwen3": _decoder("ar_qwen3", "ar", "configs.qwen3"),
    "a2d-llama": _decoder("ar_llama", "ar", "configs.llama", "a2d-llama"),
    "a2d-qwen2": _decoder("dream_untied", "dream", "configs.untied", "a2d-qwen2"),
    "a2d-qwen3": _decoder("ar_qwen3", "ar", "configs.qwen3", "a2d-qwen3"),
    "llada2": Golden(
        weights="interop_llada2moe",
        settings="llada2moe",
        chats=True,
        changes=tuple((f"{p}.block_size", "4") for p in ("network", "objective", "sampler")),
    ),
    "mdlm": Golden(weights="mdlm_dit", settings="duo", config="mdlm_config", special=LAST),
    "bd3lm": Golden(
        weights="interop_bd3lm_hf", settings="bd3lm_hf", special=dict(t47="<mask>", t1="<bos>")
    ),
    "duo": Golden(weights="mdlm_dit", settings="duo", config="duo_config", special=LAST),
    "sedd": Golden(
        weights="mdlm_dit", settings="duo", config="mdlm_config", special=LAST, more=SEDD
    ),
    "bert": Golden(
        weights="interop_bert_mlm", settings="bert", config="configs.bert_mlm", special=ENCODER
    ),
    "modernbert": Golden(
        weights="interop_modernbert_mlm",
        settings="bert",
        config="configs.modernbert_mlm",
        special=ENCODER,
    ),
}
"""A network for each layout. Qwen2's tensors are those of Dream, SEDD's those of MDLM."""
