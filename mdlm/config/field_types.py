"""The declared types of a component's fields, and the values that they take."""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from mdlm.config.components import fitting, name_of

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
NOTHING = type(None)


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field, or `dataclasses.MISSING`."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def missing_in(values: Mapping[str, Any], kind: type) -> list[str]:
    """The names of the fields of `kind` that have neither a default nor one of the `values`."""
    needed = [f.name for f in dataclasses.fields(kind) if default_of(f) is dataclasses.MISSING]
    return [name for name in needed if name not in values]


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The declared types of a component's fields."""
    return typing.get_type_hints(kind)


def expected(kind: Any, brief: bool = False) -> str:
    """Describes the values of a type for messages. `brief` names kinds, not their components."""
    words = []
    for option in options(kind):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is Literal:
            words.append("one of " + ", ".join(str(a) for a in arguments))
        elif origin in (tuple, list):
            words.append(f"{expected(arguments[0], brief)}, or several separated by commas")
        elif option in WORDS or option is NOTHING:
            words.append(WORDS.get(option, "none"))
        elif isinstance(option, type) and brief:
            words.append(option.__name__)
        elif isinstance(option, type):
            words += [f"{name_of(fit)}(...)" for fit in fitting((option,)) or (option,)]
        elif option is not Any:
            words.append("a function, which cannot be written as text")
    return " or ".join(words)


def options(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a declared type: the members of a union, else the type itself."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        return tuple(option for one in typing.get_args(kind) for option in options(one))
    return (kind,)


def is_kind(kind: Any) -> bool:
    """Whether a declared type is a class of components."""
    is_class = isinstance(kind, type) and not typing.get_args(kind)
    return is_class and kind not in (*WORDS, NOTHING, Any)


def items_of(kind: Any) -> tuple[Any, ...] | None:
    """The types of the items of a tuple or list type; None for other types."""
    if typing.get_origin(kind) is list:
        return (*typing.get_args(kind), ...)
    return typing.get_args(kind) if typing.get_origin(kind) is tuple else None
