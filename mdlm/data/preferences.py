"""Preferences: prompts with two responses, of which one was chosen and the other rejected."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mdlm.data.pair_data import OWN_NAMES, Pairs
from mdlm.data.pairs import Fields, Pair, check_text, rows_of_file
from mdlm.data.tokens.conversations import checked
from mdlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Preferences(Pairs):
    """Preferences for `objective=Preference(...)`: files and data sets as those of `Pairs`.

    A line, or a row, has the fields `prompt`, `chosen` and `rejected`, with other names in
    `fields`. A prompt is a text, or the messages of a conversation. Without a prompt, `chosen` and
    `rejected` are conversations that differ in the answer at their end.

    In training the chosen and the rejected response of a prompt are two rows, one after the other.
    Validation and test have the chosen responses alone.

    Reading raises InputError, with the line, if a field is missing, no text, or empty, or if the
    responses are the same.
    """

    rows_together: ClassVar[int] = 2

    @property
    def name(self) -> str:
        return f"preferences {self.train}"

    def pairs(self, split: str) -> list[Pair]:
        found = super().pairs(split)
        return found if split == "train" else found[::2]

    def _read(self, name: str, split: str) -> list[Pair]:
        used = (self.fields.prompt, self.fields.chosen, self.fields.rejected)
        rows = rows_of_file(name, used, split=OWN_NAMES[split], config=self.config)
        found = [pair for where, row in rows for pair in compared_in(row, self.fields, where)]
        if not found:
            raise InputError(f"{name}: no preferences in it")
        return found


def compared_in(row: Mapping[str, Any], fields: Fields, where: str) -> tuple[Pair, Pair]:
    """Returns the prompt in a row with its chosen and its rejected response.

    Raises InputError if a field is missing or no text, or if the responses are the same.
    """
    names = (fields.chosen, fields.rejected)
    is_said = all(isinstance(row.get(name), list) for name in names)
    due = names if is_said and fields.prompt not in row else (fields.prompt, *names)
    missing = [name for name in due if name not in row]
    if missing:
        there = ", ".join(sorted(map(str, row))) or "none"
        raise InputError(
            f"{where}: no field {missing[0]!r}, only {there:.200}; name others with"
            " --data.source.fields.prompt, .chosen and .rejected"
        )
    if is_said:
        chosen, rejected = (checked(row[name], f"{where}: {name!r}") for name in names)
        prompt, responses = _divided(chosen, rejected, where)
    else:
        prompt, responses = row[fields.prompt], [row[name] for name in names]
        for name, value in zip(names, responses, strict=True):
            check_text(value, f"{where}: {name!r}")
        if isinstance(prompt, list):
            prompt = checked(prompt, f"{where}: {fields.prompt!r}")
        else:
            check_text(prompt, f"{where}: {fields.prompt!r}")
    if responses[0] == responses[1]:
        raise InputError(
            f"{where}: {names[0]!r} and {names[1]!r} are the same text; leave the line out"
        )
    chosen, rejected = (Pair(prompt=prompt, response=said, where=where) for said in responses)
    return chosen, rejected


def _divided(
    chosen: list[dict[str, str]], rejected: list[dict[str, str]], where: str
) -> tuple[list[dict[str, str]], list[str]]:
    """Returns the messages that two conversations share, and the answer at the end of each."""
    ends = [chosen[-1], rejected[-1]]
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise InputError(f"{where}: the two conversations must differ in their last message alone")
    if any(end["role"] != "assistant" for end in ends):
        raise InputError(f"{where}: both conversations must end with a message of the assistant")
    return chosen[:-1], [end["content"] for end in ends]
