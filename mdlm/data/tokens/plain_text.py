"""The library's tokenizer, set so that text is only text and always gives the same tokens.

A model may have a special token among its pieces, so text that spells `</s>` would become one.
For encoding, special tokens therefore get names that no text has. Their ids stay.
"""

import json
import logging
from collections.abc import Set
from typing import Any

import tokenizers

log = logging.getLogger(__name__)

UNSPELT = "\U0010fffe\U0010ffff"
"""Begins the names that special tokens have while text is encoded."""


def settled(backend: tokenizers.Tokenizer, name: str) -> tokenizers.Tokenizer:
    """Switches off all that makes the tokens of a text more, fewer or random, and says so."""
    state, off = json.loads(backend.to_str()), []
    if state["model"].get("dropout"):
        off.append(f"its dropout of {state['model']['dropout']}")
        state["model"]["dropout"] = None
    off += [f"its {kind}" for kind in ("truncation", "padding") if state[kind]]
    before = len(backend.encode("", add_special_tokens=True).ids)
    off += ["the special tokens that it puts around each text"] if before else []
    if off:
        log.warning("tokenizer %s: switched off %s", name, ", ".join(off))
    state |= {"truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def marked(backend: tokenizers.Tokenizer, ids: Set[int]) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose added tokens `ids` are marked special."""
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["id"] in ids
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def for_text(backend: tokenizers.Tokenizer, special: Set[int]) -> tokenizers.Tokenizer:
    """Returns a tokenizer that encodes text as `backend` does, but never to a special token.

    Special are the added tokens that are marked so, and the ids `special`. Other added tokens
    are still found in text. Nothing is random, cut off or padded.
    """
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    state = json.loads(backend.to_str())
    model = state["model"]
    renamed = _reachable(state, _contents(state, special), special)
    unmarked = any(t["id"] in special and not t["special"] for t in state["added_tokens"])
    if not renamed and not unmarked and not model.get("dropout"):
        return backend
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["id"] in special
        token["content"] = renamed.get(token["content"], token["content"])
    if "dropout" in model:
        model["dropout"] = None
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(name, name): i for name, i in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(name, name), score] for name, score in model["vocab"]]
    if "merges" in model:
        parts = ((pair, {*pair, _joined(pair, model)}) for pair in model["merges"])
        model["merges"] = [pair for pair, names in parts if not names & set(renamed)]
    encoder = tokenizers.Tokenizer.from_str(json.dumps({**state, "post_processor": None}))
    encoder.encode_special_tokens = True
    return encoder


def unknown_id(backend: tokenizers.Tokenizer) -> int | None:
    """Returns the id of the token for what has none of its own; None if there is no such token."""
    model = json.loads(backend.to_str())["model"]
    if model["type"] == "Unigram":
        return model["unk_id"]
    name = model.get("unk_token")
    return None if name is None else backend.token_to_id(name)


def _contents(state: dict[str, Any], special: Set[int]) -> dict[str, int]:
    """Returns the names and ids of special tokens."""
    vocab = state["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {name: i for i, (name, _) in enumerate(vocab)}
    marked = {t["content"]: t["id"] for t in state["added_tokens"] if t["special"]}
    return marked | {name: i for name, i in ids.items() if i in special}


def _reachable(state: dict[str, Any], found: dict[str, int], special: Set[int]) -> dict[str, str]:
    """Returns the new names of the special tokens that the model itself may find in a text.

    A single character that has no role stays, since it has no other spelling.
    """
    model = state["model"]
    names = {name for name, i in found.items() if len(name) > 1 or i in special}
    if isinstance(model["vocab"], dict):
        names &= set(model["vocab"])
    else:
        names &= {name for name, _ in model["vocab"]}
    if model["type"] == "BPE" and not model.get("ignore_merges"):
        made = {_joined(pair, model) for pair in model["merges"]}
        names = {name for name in names if len(name) == 1 or name in made}
    return {name: UNSPELT + name for name in names}


def _joined(pair: list[str], model: dict[str, Any]) -> str:
    """Returns the piece that a merge makes."""
    return pair[0] + pair[1].removeprefix(model.get("continuing_subword_prefix") or "")
