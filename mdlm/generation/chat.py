"""Conversations: from messages to the tokens of a prompt, by the template of a checkpoint."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.generation.windows import Windows

Message = Mapping[str, str]
"""A message: its `role` ("system", "user" or "assistant") and its `content`."""
ROLES = ("system", "user", "assistant", "tool")
TIMEOUT = 15.0
"""Most seconds for a template."""
LONGEST = 2**22
"""Most characters of a prompt."""


def checked(messages: Any, title: str = "messages") -> list[dict[str, str]]:
    """Returns messages as plain dictionaries. Raises InputError if they are none."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(f"{title}: expected a list of messages, with at least one")
    for number, one in enumerate(messages, 1):
        where = f"{title}: message {number}"
        if not isinstance(one, Mapping) or {"role", "content"} - set(one):
            raise InputError(f'{where}: expected {{"role": ..., "content": ...}}')
        if one["role"] not in ROLES:
            raise InputError(
                f"{where}: role {one['role']!r:.40}: must be one of {', '.join(ROLES)}"
            )
        if not isinstance(one["content"], str):
            raise InputError(f"{where}: content must be a text")
    return [{"role": one["role"], "content": one["content"]} for one in messages]


def prompt_of(messages: Any, template: str | None, tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens of a conversation, a list of messages, up to where the answer begins.

    Special tokens of the template become those tokens; a message that spells one is refused, as it
    could pretend to be another speaker. Raises InputError if there is no template, or if it fails.
    """
    plain = checked(messages)
    if template is None:
        raise InputError("this run has no chat template: use --prompt, or import one that has")
    special = [
        t.content for t in tokenizer.backend.get_added_tokens_decoder().values() if t.special
    ]
    for number, message in enumerate(plain, 1):
        for token in special:
            if token in message["content"]:
                raise InputError(f"message {number} spells the special token {token}: leave it out")
    text = rendered(template, plain, tokenizer)
    return tokenizer.encode_marked(text)


def window_of_answers(
    prompts: Sequence[Sequence[int]], length: int, longest: int, network: Any
) -> Windows:
    """Returns the window that holds each prompt with an answer of `length` tokens and nothing else.

    Raises InputError if a row of `longest` tokens does not hold them.
    """
    most, block = max(map(len, prompts)), getattr(network, "block_size", 0) or 1
    total = -(-(most + length) // block) * block
    if length < 1 or total > longest:
        raise InputError(
            f"length={length}: must be from 1 to {longest - most}, as the prompt has"
            f" {most} tokens and a row of this run {longest}"
        )
    # What follows a text is nothing to a network that goes from left to right.
    return Windows(length=total, closes_at=None if network.attends == "causal" else block)


def rendered(template: str, messages: list[dict[str, str]], tokenizer: Tokenizer) -> str:
    """Returns the text of a conversation. The template runs in a sandbox, in a process of its own.

    Raises InputError if it fails, or takes too long.
    """
    vocab = tokenizer.vocab
    name = lambda number: "" if number is None else tokenizer.backend.id_to_token(number) or ""
    values = {
        "messages": messages,
        "add_generation_prompt": True,
        "bos_token": name(vocab.bos_id),
        "eos_token": name(vocab.eos_id),
        "tools": None,
        "enable_thinking": False,
    }
    script = str(Path(__file__).with_name("jinja_process.py"))
    asked = json.dumps({"template": template, "values": values}).encode()
    try:
        done = subprocess.run(
            [sys.executable, "-I", script], input=asked, capture_output=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the chat template takes more than {TIMEOUT:.0f} seconds") from error
    if done.returncode:
        raise InputError(
            "the chat template takes too long or too much memory"
            if done.returncode < 0
            else f"the chat template cannot be used: {done.stderr.decode(errors='replace')[-200:]}"
        )
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise InputError(f"the chat template fails: {answer['error']:.300}")
    if len(answer["text"]) > LONGEST:
        raise InputError(f"the chat template wrote {len(answer['text'])} characters, too many")
    return answer["text"]
