"""Prompts and their responses: read from files or data sets, encoded, and laid out in rows.

In a row the prompt is valid and attended to, but neither noised nor scored: it is the condition of
log p(response | prompt). After the response comes padding that no token attends to.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdlm.data.rows.base import Rows
from mdlm.data.text.files import json_object
from mdlm.data.text.hugging_face import HuggingFace
from mdlm.data.text.utf8 import NotUTF8, Opened
from mdlm.data.tokens.conversations import answered, checked, prompts_of
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.foreign.limits import check_within, limit
from mdlm.types import Vocab

Messages = Sequence[Mapping[str, str]]
"""A conversation, see `mdlm.data.tokens.conversations`."""
ENDINGS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt, which is a text or a conversation, and its response. `where` names the pair in
    messages to the user, such as FILE:LINE."""

    prompt: str | Messages
    response: str
    where: str

    @property
    def text(self) -> str:
        """All that is said, the messages of a conversation one after another."""
        if isinstance(self.prompt, str):
            return self.prompt + self.response
        return "\n".join([*(str(one.get("content")) for one in self.prompt), self.response])


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The tokens of a pair. The prompt begins with the token that rows begin with, if any.
    `is_ended`: the response has the token that ends an answer."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    where: str
    is_ended: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The names of the fields, or columns, of a pair: of the `prompt` and the `response`, or of
    `messages`, a conversation that ends with the answer of the assistant. A preference has two
    responses, the `chosen` and the `rejected`."""

    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    chosen: str = "chosen"
    rejected: str = "rejected"


def read_pairs(
    name: str, fields: Fields, *, split: str = "test", config: str | None = None
) -> list[Pair]:
    """Returns the pairs of a .jsonl file, or of a split of a data set: a folder, or a name on the
    Hugging Face hub. Raises InputError, in one line, if it has none or one of them is damaged."""
    used = (fields.prompt, fields.response, fields.messages)
    found = rows_of_file(name, used, split=split, config=config)
    pairs = [pair_of(row, fields, where) for where, row in found]
    if not pairs:
        raise InputError(f"{name}: no prompt and response in it")
    return pairs


def rows_of_file(
    name: str, used: Sequence[str], *, split: str, config: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the rows of a file or data set, as `read_pairs` finds it, each after its name for
    messages. `used` are the fields that are read."""
    path = Path(os.path.expanduser(name))  # no error without a home folder
    if path.is_file() and not path.name.endswith(ENDINGS):
        raise InputError(f"{name}: unknown ending: must be .jsonl, also with .gz, or a data set")
    if name.endswith(ENDINGS):
        if not path.is_file():
            raise InputError(f"file not found: {name}")
        yield from json_lines(path, ", ".join(map(repr, used)))
        return
    table = HuggingFace(path=name, config=config, train=split).table("train")
    for i, row in enumerate(table):
        yield f"{name}, {split} row {i}", row


def json_lines(
    path: Path, used: str, whole: Callable[[str], Any] = lambda digits: 0
) -> Iterator[tuple[str, Any]]:
    """Yields the object in each line of a file, after its place, FILE:LINE. `used` names the fields
    that are wanted, for messages, and `whole` reads whole numbers, see `json_object`. Raises
    InputError, with the line, if it cannot be read."""
    longest, number = limit("MDLM_MAX_DOCUMENT"), 0
    try:
        with Opened(path, 0) as file:
            while line := file.binary.readline(longest + 1):
                number += 1
                where = f"{path}:{number}"
                check_within("MDLM_MAX_DOCUMENT", len(line), f"{where}: a line")
                if text := file.decode(line, 0).strip():
                    yield (
                        where,
                        json_object(text, where, used, whole),
                    )
    except NotUTF8 as error:
        raise InputError(f"{path}:{number} is not UTF-8 text: {error} of the line") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def pair_of(row: Mapping[str, Any], fields: Fields, where: str) -> Pair:
    """Returns the pair in a row. Raises InputError if a field is missing, no text, or empty."""
    if fields.messages in row and fields.response not in row:
        return _of_messages(row[fields.messages], where)
    missing = [name for name in (fields.prompt, fields.response) if name not in row]
    if missing:
        there = ", ".join(sorted(map(str, row))) or "none"
        raise InputError(
            f"{where}: no field {missing[0]!r} (nor {fields.messages!r}), only {there:.200}; name"
            " others with --prompt-field and --response-field (in training, with"
            " --data.source.fields.prompt and .response)"
        )
    for name in (fields.prompt, fields.response):
        check_text(row[name], f"{where}: {name!r}")
    return Pair(prompt=row[fields.prompt], response=row[fields.response], where=where)


def _of_messages(messages: Any, where: str) -> Pair:
    last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise InputError(
            f'{where}: messages must end with {{"role": "assistant", "content": ...}}, after one at'
            " least"
        )
    check_text(last.get("content"), f"{where}: the last message")
    return Pair(prompt=checked(messages[:-1], where), response=last["content"], where=where)


def check_text(value: Any, title: str) -> None:
    """Raises InputError, which begins with `title`, if a value is no text."""
    if not isinstance(value, str):
        raise InputError(f"{title} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{title} has half a surrogate pair") from error


def as_pairs(pairs: Iterable[Pair | tuple[str | Messages, str]]) -> list[Pair]:
    """Returns pairs that Python code gives, named by their number. Raises InputError as above."""
    found = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, Pair):
            prompt, response = pair
            check_text(response, f"pair {number}: the response")
            pair = Pair(prompt=prompt, response=response, where=f"pair {number}")
        found.append(pair)
    return found


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    *,
    start: int | None,
    is_whole: bool = False,
) -> list[Encoded]:
    """Returns the tokens of pairs. A text begins with the token `start`, if any; a conversation
    begins as the tokenizer's template says. If `is_whole`, the answer of a conversation has what
    the template writes at its end.

    Raises InputError if a response has no token, or a part of a text has none.
    """
    said = [pair for pair in pairs if not isinstance(pair.prompt, str)]
    if not said:
        conversations = iter(())
    elif is_whole:
        asked = [(pair.prompt, pair.response, pair.where) for pair in said]
        conversations = iter(answered(asked, tokenizer))
    else:
        titles = [pair.where for pair in said]
        prompts = prompts_of([pair.prompt for pair in said], tokenizer, titles)
        responses = (tokenizer.encode_after(pair.response).tolist() for pair in said)
        conversations = zip(prompts, responses, strict=True)
    found = []
    for pair in pairs:
        try:
            if isinstance(pair.prompt, str):
                prompt, response = divided(tokenizer, pair.prompt, pair.response)
                prompt = prompt if start is None else [start, *prompt]
            else:
                prompt, response = next(conversations)
        except InputError as error:
            raise InputError(f"{pair.where}: {error}") from error
        if not response:
            raise InputError(f"{pair.where}: the response is empty: it must have a token at least")
        is_ended = is_whole and response[-1] in tokenizer.chat.ends
        found.append(
            Encoded(
                prompt=tuple(prompt),
                response=tuple(response),
                where=pair.where,
                is_ended=is_ended,
            )
        )
    return found


def divided(tokenizer: Tokenizer, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Returns the tokens of a prompt and of the response that follows it.

    They are those of the whole text where the tokens of the prompt alone begin it. White space at
    the end of a prompt, which many tokenizers join with the next word, is else counted with the
    response, as in lm-eval. Where that is not enough, each of the two is encoded for itself.
    """
    for kept in dict.fromkeys((prompt, prompt.rstrip())):
        before, both = (ids.tolist() for ids in tokenizer.encode([kept, prompt + response]))
        if both[: len(before)] == before:
            return before, both[len(before) :]
    return tokenizer.encode([prompt])[0].tolist(), tokenizer.encode_after(response).tolist()


def rolled(text: Sequence[int], start: int | None, longest: int) -> Iterator[Encoded]:
    """Yields rows that score each token of a text once, each row but the last conditioned on the
    one token before it, the last one on as many as fit."""
    before = [] if start is None else [start]
    first = longest - len(before)
    if text:
        yield Encoded(prompt=tuple(before), response=tuple(text[:first]), where="the text")
    for begin in range(first, len(text), longest - 1):
        end = min(begin + longest - 1, len(text))
        seen = text[end - longest : begin] if end == len(text) else text[begin - 1 : begin]
        yield Encoded(prompt=tuple(seen), response=tuple(text[begin:end]), where="the text")


def check_lengths(pairs: Sequence[Encoded], longest: int) -> None:
    """Raises InputError if a pair has more tokens than a row."""
    for pair in pairs:
        if len(pair) > longest:
            raise InputError(
                f"{pair.where}: prompt and response have {len(pair.prompt)} + {len(pair.response)}"
                f" tokens, a row of this run {longest}: shorten them"
            )


def rows_of(pairs: Sequence[Encoded], length: int, vocab: Vocab) -> Rows:
    """Returns a row of `length` tokens for each pair, none of which has more."""
    tokens = np.full((len(pairs), length), int(vocab.mask_id == 0), np.int32)
    loss_mask, is_valid = (np.zeros(tokens.shape, bool) for _ in range(2))
    for i, pair in enumerate(pairs):
        tokens[i, : len(pair)] = (*pair.prompt, *pair.response)
        loss_mask[i, len(pair.prompt) : len(pair)] = True
        is_valid[i, : len(pair)] = True
    return Rows(tokens=tokens, loss_mask=loss_mask, is_valid=is_valid)
