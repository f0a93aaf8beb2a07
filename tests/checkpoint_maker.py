"""Folders in the form of the Hugging Face hub, from reference weights and a small tokenizer."""

import json
import shutil
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?;:'\"-()\n"


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
