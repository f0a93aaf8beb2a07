"""The tokenizer of a published checkpoint, with the tokens that its config.json names by id."""

from pathlib import Path
from typing import Any

from mdlm.data.tokenizers import Pretrained
from mdlm.data.tokens.chat import Chat
from mdlm.errors import InputError
from mdlm.interop.checkpoint import Checkpoint
from mdlm.interop.layout import Parts

FILES = ("tokenizer.json", "tokenizer.model")
ROLES = ("mask", "bos", "eos", "pad")


def tokenizer_of(
    checkpoint: Checkpoint, parts: Parts, asked: str | None = None, mask: str | None = None
) -> Pretrained:
    """Returns the tokenizer's configuration: the one that is `asked` for, that in the folder, or
    the layout's own. `mask` names its mask token, if config.json names none.

    Raises InputError if there is none, or if it has no token of an id that config.json names.
    """
    folder = checkpoint.folder
    name = asked or (str(folder.absolute()) if _has_one(folder) else parts.tokenizer)
    if name is None:
        raise InputError(
            f"{folder}: has no tokenizer.json; name its tokenizer with --tokenizer NAME (a"
            " tokenizer.json, a folder with one, or a name on the hub)"
        )
    backend = Pretrained(name=name).backend()
    size = backend.get_vocab_size(with_added_tokens=True)
    told = checkpoint.optional("tokenizer_config.json")
    chosen: dict[str, Any] = {}
    for role in ROLES:
        number = getattr(parts, role)
        token = None if number is None else backend.id_to_token(number)
        if number is not None and token is None and not (role == "mask" and number == size):
            raise InputError(
                f"{checkpoint.config.title}: the {role} token is {number}, and tokenizer {name},"
                f" of {size} tokens, has no such token"
            )
        if number is None:
            token = _written(told.get(f"{role}_token"), backend)
        chosen[role] = token
    if parts.mask is None:
        chosen["mask"] = mask or chosen["mask"] or _usual_mask(backend)
    if chosen["mask"] is None and parts.mask is None and parts.network.attends != "causal":
        raise InputError(
            f"{checkpoint.config.title}: names no mask token, and tokenizer {name} has none: name"
            " one with --mask TOKEN"
        )
    return Pretrained(name=name, **chosen)


def chat_of(checkpoint: Checkpoint, parts: Parts) -> Chat:
    """Returns the template of conversations in the folder, and the tokens that end an answer.

    Nothing is executed: the template is text. Raises InputError if a file is damaged.
    """
    folder, told = checkpoint.folder, checkpoint.optional("tokenizer_config.json")
    template: Any = told.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            template = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not a readable text ({error})") from error
    ends = checkpoint.optional("generation_config.json").get("eos_token_id", parts.eos)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    own = [] if parts.eos is None else [parts.eos]
    return Chat(
        template=template if isinstance(template, str) else None,
        ends=tuple(dict.fromkeys(n for n in [*ends, *own] if type(n) is int and n >= 0)),
    )


def _has_one(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _written(value: Any, backend: Any) -> str | None:
    """Returns a token that tokenizer_config.json names, as text or as an object."""
    text = value.get("content") if isinstance(value, dict) else value
    known = isinstance(text, str) and backend.token_to_id(text) is not None
    return text if known else None


def _usual_mask(backend: Any) -> str | None:
    from mdlm.data.tokenizers import USUAL

    return next((name for name in USUAL["mask"] if backend.token_to_id(name) is not None), None)
