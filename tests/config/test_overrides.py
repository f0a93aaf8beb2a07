"""Typed overrides by dotted name."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from mdlm.config.overrides import apply, names
from mdlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    files: str | tuple[str, ...] | None = None

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} is negative")


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int = 10
    on: bool = False
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "2_000", 2000),
        ("steps", "1e3", 1000),
        ("on", "true", True),
        ("on", "no", False),
        ("inner.rate", "3e-4", 3e-4),
        ("inner.kind", "b", "b"),
        ("inner.files", "one.txt", "one.txt"),
        ("inner.files", "one.txt,two.txt", ("one.txt", "two.txt")),
        ("inner.files", "none", None),
    ],
)
def test_values_are_read_as_their_type(name, text, value):
    found = {n: v for n, _, v in names(apply(Outer(), [(name, text)]))}
    assert found[name] == value and type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("stpes", "1", "did you mean --steps?"),
        ("inner.rat", "1", "did you mean --inner.rate?"),
        ("rate", "1", "did you mean --inner.rate?"),
        ("steps.more", "1", "no such setting"),
        ("steps", "ten", "expected a whole number"),
        ("steps", "1.5", "expected a whole number"),
        ("on", "maybe", "expected true or false"),
        ("inner.kind", "c", "expected one of a, b"),
        ("inner.rate", "-1", "rate=-1.0 is negative"),
        ("inner", "1", "is a Inner: change it in the experiment file, or set one of its values"),
    ],
)
def test_mistakes_are_named(name, text, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        apply(Outer(), [(name, text)])


def test_later_overrides_win():
    assert apply(Outer(), [("steps", "1"), ("steps", "2")]).steps == 2
