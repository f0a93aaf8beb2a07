"""What a run folder knows of conversations: the template of prompts, and the tokens that end an
answer. Both come with imported checkpoints; data/chat.json holds them."""

import json
from dataclasses import dataclass
from pathlib import Path

from mdlm.foreign.typed_json import Count
from mdlm.runs.reading import json_of

FILE = "chat.json"


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


def read(folder: Path) -> Chat:
    """Reads the file. Raises InputError if it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return Chat()
    return json_of(path, Chat)
