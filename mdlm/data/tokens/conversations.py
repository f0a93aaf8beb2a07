"""Conversations: from messages to tokens, by the chat template of a tokenizer."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError

Message = Mapping[str, str]
"""A message: its `role` ("system", "user" or "assistant") and its `content`."""
ROLES = ("system", "user", "assistant", "tool")
TIMEOUT = 15.0
"""Most seconds for a template and `MANY` conversations."""
MANY = 1000
"""Conversations that are handed to a process at a time."""
LONGEST = 2**22
"""Most characters of a conversation."""


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
        try:
            one["content"].encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: content has half a surrogate pair") from error
    return [{"role": one["role"], "content": one["content"]} for one in messages]


def prompt_of(messages: Any, tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens of a conversation, a list of messages, up to where the answer begins.

    Special tokens of the template become those tokens; a message that spells one is refused, as it
    could pretend to be another speaker. Raises InputError if there is no template, or if it fails.
    """
    return prompts_of([messages], tokenizer)[0]


def prompts_of(
    conversations: Sequence[Any], tokenizer: Tokenizer, titles: Sequence[str] = ()
) -> list[list[int]]:
    """Returns `prompt_of` of each conversation; `titles` name them in messages of errors."""
    plain = []
    for number, messages in enumerate(conversations):
        plain.append(checked(messages, titles[number] if titles else "messages"))
        check_words(plain[-1], tokenizer, f"{titles[number]}: " if titles else "")
    return tokenizer.encode_marked(rendered(plain, tokenizer, titles=titles))


def answered(
    conversations: Sequence[tuple[Any, str, str]], tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]]]:
    """Returns the tokens of prompts and of their answers. Conversations are given as messages, the
    answer, and a title for messages of errors.

    An answer has what the template writes after it, up to the first token that ends an answer. The
    template is run once for all. Raises InputError as `prompt_of`.
    """
    asked, whole = [], []
    titles = [title for _, _, title in conversations]
    for messages, answer, title in conversations:
        prompt = checked(messages, title)
        full = [*prompt, {"role": "assistant", "content": answer}]
        check_words(full, tokenizer, f"{title}: ")
        asked.append(prompt)
        whole.append(full)
    prompts = rendered(asked, tokenizer, titles=titles)
    texts = rendered(whole, tokenizer, is_asked=False, titles=titles)
    said = [
        answer_in(text, prompt, answer)
        for text, prompt, (_, answer, _) in zip(texts, prompts, conversations, strict=True)
    ]
    together = [prompt + answer for prompt, answer in zip(prompts, said, strict=True)]
    ids = [tokenizer.encode_marked(some) for some in (prompts, together, said)]
    found = []
    for before, both, alone in zip(*ids, strict=True):
        response = both[len(before) :] if both[: len(before)] == before else alone
        ends = [i for i, token in enumerate(response) if token in tokenizer.chat.ends]
        found.append((before, response[: ends[0] + 1] if ends else response))
    return found


def answer_in(text: str, prompt: str, answer: str) -> str:
    """Returns the answer at the end of a conversation's text, with what stands after it. Some
    templates write an answer of the past otherwise than one that is asked for."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    at = text.rfind(answer.strip())
    return answer if at < 0 else text[at:]


def check_words(messages: Sequence[Message], tokenizer: Tokenizer, title: str = "") -> None:
    """Raises InputError if a message spells a special token."""
    added = tokenizer.backend.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special]
    for number, message in enumerate(messages, 1):
        for token in special:
            if token in message["content"]:
                raise InputError(
                    f"{title}message {number} spells the special token {token}: leave it out"
                )


def rendered(
    conversations: Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    *,
    is_asked: bool = True,
    titles: Sequence[str] = (),
) -> list[str]:
    """Returns the texts of conversations, each up to where the answer begins if `is_asked`. The
    template runs in a sandbox, in a process of its own. `titles` name the conversations in messages
    of errors.

    Raises InputError if there is no template, if it fails, or takes too long.
    """
    template = tokenizer.chat.template
    if template is None:
        title = f"{titles[0]}: " if titles else ""
        raise InputError(
            f"{title}this run has no chat template: use --prompt, or import one that has"
        )
    vocab = tokenizer.vocab
    name = lambda number: "" if number is None else tokenizer.backend.id_to_token(number) or ""
    values = {
        "add_generation_prompt": is_asked,
        "bos_token": name(vocab.bos_id),
        "eos_token": name(vocab.eos_id),
        "tools": None,
        "enable_thinking": False,
    }
    texts: list[str] = []
    for start in range(0, len(conversations), MANY):
        some = conversations[start : start + MANY]
        answer = _in_process({"template": template, "values": values, "conversations": some})
        if "error" in answer:
            number = start + answer["written"]
            which = f", conversation {number + 1}" if len(conversations) > 1 else ""
            which, title = ("", f"{titles[number]}: ") if titles else (which, "")
            raise InputError(f"{title}the chat template fails{which}: {answer['error']:.300}")
        texts += answer["texts"]
    longest = max(map(len, texts), default=0)
    if longest > LONGEST:
        raise InputError(f"the chat template wrote {longest} characters, too many")
    return texts


def _in_process(asked: dict[str, Any]) -> dict[str, Any]:
    """Returns what `jinja_process` answers."""
    script = str(Path(__file__).with_name("jinja_process.py"))
    sent = json.dumps(asked).encode()
    try:
        done = subprocess.run(
            [sys.executable, "-I", script], input=sent, capture_output=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the chat template takes more than {TIMEOUT:.0f} seconds") from error
    if done.returncode:
        raise InputError(
            "the chat template takes too long or too much memory"
            if done.returncode < 0
            else f"the chat template cannot be used: {done.stderr.decode(errors='replace')[-200:]}"
        )
    return json.loads(done.stdout)
