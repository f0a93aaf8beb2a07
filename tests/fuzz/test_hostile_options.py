"""Every option of every command is given hostile values."""

import argparse

import pytest
from hostile import NUMBERS, SMALL, TEXTS, some

from mdlm.cli.main import COMMANDS, parser

BEGINNINGS = {
    "experiments": [],
    "new": ["mine"],
    "settings": ["tiny.py"],
    "train": ["tiny.py", "--out", "new", *SMALL, "--train.steps", "1"],
    "plan": ["tiny.py", "--topology", "gpu:1xH100", "--vocab", "300"],
    "prepare": ["tiny.py", "--out", "new", "--workers", "1"],
    "tokenizer": ["train", "text.txt", "--out", "new", "--vocab-size", "270"],
    "eval": ["run", "--passes", "1"],
    "score": ["run", "pairs.jsonl", "--passes", "2"],
    "blanks": ["run", "--num", "2", "--blank", "1", "--at", "end"],
    "frontier": ["run", "--steps", "2", "--length", "8", "--num", "2", "--batch", "2"],
    "harness": ["run", "--tasks", "none"],
    "components": [],
    "samplers": [],
    "sample": ["run", "--steps", "2", "--length", "8"],
    "view": ["made.trace"],
    "report": ["run", "--html", "page.html"],
    "runs": ["run"],
    "import": ["run/none.safetensors", "tiny.py", "--out", "new"],
    "export": ["run", "--to", "new"],
    "completion": ["bash"],
}
"""The words after each command that do something small; a case replaces one or adds one."""


def parsers() -> dict[str, argparse.ArgumentParser]:
    [commands] = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(commands.choices)


def cases():
    for name, sub in parsers().items():
        for number, action in enumerate(sub._actions):
            if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
                continue
            table = NUMBERS if action.type in (int, float) else TEXTS
            if action.choices is not None:
                table = {"empty": "", "surrogate": TEXTS["surrogate"]}
            option = action.option_strings[-1] if action.option_strings else action.dest
            for kind, value in some(table, number).items():
                yield pytest.param(name, option, value, id=f"{name} {option} {kind}")


def words(name: str, option: str, value: str) -> list[str]:
    """The words of a command with a value in the place of one of them, or added."""
    if option.startswith("--"):
        return [name, *BEGINNINGS[name], f"{option}={value}"]
    sub = parsers()[name]
    places = [action.dest for action in sub._actions if not action.option_strings]
    rest = list(BEGINNINGS[name])
    at = places.index(option)
    rest[at : at + 1] = [value]
    return [name, *rest]


def test_each_command_has_a_beginning():
    assert set(BEGINNINGS) == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option", "value"), list(cases()))
def test_options(attempt, name, option, value):
    if option == "name" and value.startswith("-"):
        pytest.skip("a dash makes it an option")
    attempt(*words(name, option, value))


@pytest.mark.slow
@pytest.mark.parametrize("value", [pytest.param(v, id=k) for k, v in TEXTS.items()])
def test_words(attempt, value):
    attempt(value)
    attempt("settings", "tiny.py", value)
    attempt("settings", "tiny.py", f"--{value}")
    attempt("settings", "tiny.py", f"--{value}", value)
