"""What a tokenizer knows of conversations: the template of prompts, and the tokens that end an
answer. Both come with imported checkpoints, or with the data that a network is fine-tuned on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mdlm.foreign.typed_json import Count, decoded

FILE = "chat.json"
"""The file of a saved tokenizer that holds it, if anything is known."""

PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}"
    "{% if add_generation_prompt or not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""A template for networks that never saw a conversation: a line of plain text for each message."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A template of conversations in the Jinja language, None if there is none, and the ids of the
    tokens that end an answer."""

    template: str | None = None
    ends: tuple[Count, ...] = ()


def files(chat: Chat) -> dict[str, str]:
    """Returns the text of the file by its name; nothing if nothing is known."""
    if chat == Chat():
        return {}
    values = {"template": chat.template, "ends": list(chat.ends)}
    return {FILE: json.dumps(values, indent=1) + "\n"}


def of_files(files: Mapping[str, str]) -> Chat:
    """Returns what `files` returned, among other files. Raises ValueError if it is damaged."""
    return decoded(files[FILE], Chat) if FILE in files else Chat()
