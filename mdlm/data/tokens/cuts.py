"""Where a text may be cut into pieces that are encoded one by one, with the tokens of the whole."""

import json
import re
from typing import Any

import tokenizers

LOCAL = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"})
"""Normalizers that never look from a visible character at the space after it."""
WORDS = frozenset({"ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
"""Rules for words by which none continues from a visible character to a space after it."""


def safe_cut(encoder: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """Returns a pattern before whose matches a text may be cut without changing its tokens.

    The result is None if no such pattern is known: whatever puts something in front of a text,
    joins neighbours or looks across spaces forbids cuts.
    """
    state = json.loads(encoder.to_str())
    added = [token for token in state["added_tokens"] if not token["special"]]
    if _is_by_character(state) and not added:
        return re.compile(r"(?s).")
    rule = state["pre_tokenizer"] or {}
    is_by_words = rule.get("type") in WORDS and rule.get("use_regex", True)
    across = any(token["rstrip"] or re.search(r"\S\s", token["content"]) for token in added)
    if is_by_words and not across and _kinds(state["normalizer"]) <= LOCAL:
        return re.compile(r"(?<=\S) ")
    return None


def _kinds(part: dict[str, Any] | None) -> set[str]:
    """Returns the types of a normalizer, or of all in a sequence."""
    if part is None:
        return set()
    if part["type"] == "Sequence":
        return set().union(*map(_kinds, part["normalizers"]))
    return {part["type"]}


def _is_by_character(state: dict[str, Any]) -> bool:
    """Whether each character has its own tokens, wherever it stands."""
    model, rule = state["model"], state["pre_tokenizer"]
    joins = ("fuse_unk", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    return (
        model["type"] == "BPE"
        and not model["merges"]
        and not any(model.get(name) for name in joins)
        and (rule is None or (rule["type"] == "ByteLevel" and not rule["add_prefix_space"]))
        and _kinds(state["normalizer"]) <= {"Lowercase"}
    )
