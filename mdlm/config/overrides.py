"""Typed overrides: `--train.steps 2000` replaces one value of an experiment.

Names are dotted paths through the components; a value is read as the type that the field is
declared with. A name that does not exist is answered with the nearest one that does.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Union

from mdlm.errors import InputError


def apply(root, assignments: Sequence[tuple[str, str]]):
    """`root` with each `(dotted name, text)` assigned, in order. InputError names what is wrong."""
    for name, text in assignments:
        root = _assign(root, root, name.split("."), text, name)
    return root


def names(component: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """All `(dotted name, declared type, value)` below a component, leaves only."""
    hints = typing.get_type_hints(type(component))
    for f in dataclasses.fields(component):
        value = getattr(component, f.name)
        if dataclasses.is_dataclass(value):
            yield from names(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, hints[f.name], value


def _assign(root: Any, component: Any, path: list[str], text: str, whole: str) -> Any:
    head, rest = path[0], path[1:]
    fields = {f.name for f in dataclasses.fields(component)}
    value = getattr(component, head) if head in fields else None
    if head not in fields or (rest and not dataclasses.is_dataclass(value)):
        known = [name for name, _, _ in names(root)]
        near = difflib.get_close_matches(whole, known, n=1, cutoff=0.5)
        near = near or [name for name in known if name.endswith("." + path[-1])][:1]
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise InputError(f"--{whole}: the experiment has no such setting{hint}")
    if rest:
        changed = _assign(root, value, rest, text, whole)
    elif dataclasses.is_dataclass(value):
        inside = ", ".join(f"--{whole}.{f.name}" for f in dataclasses.fields(value))
        raise InputError(
            f"--{whole} is a {type(value).__name__}: change it in the experiment file, or set"
            f" one of its values{': ' + inside if inside else ''}"
        )
    else:
        changed = parse(text, typing.get_type_hints(type(component))[head], whole)
    try:
        return dataclasses.replace(component, **{head: changed})
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--{whole} {text}: {error}") from error


def parse(text: str, kind: Any, name: str) -> Any:
    """`text` as a value of the type `kind`. InputError says what was expected."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        # Where one or several are possible, a comma tells.
        several = sorted(arguments, key=lambda a: ("," in text) != (typing.get_origin(a) is tuple))
        for option in (a for a in several if a is not type(None)):
            try:
                return parse(text, option, name)
            except InputError:
                continue
    elif origin is Literal:
        if text in [str(a) for a in arguments]:
            return next(a for a in arguments if str(a) == text)
    elif origin is tuple:
        parts = [part for part in text.split(",") if part]
        return tuple(parse(part, arguments[0], name) for part in parts)
    elif kind is bool:
        if text.lower() in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            return text.lower() in ("true", "1", "yes", "on")
    elif kind in (int, float):
        try:
            number = float(text.replace("_", ""))
        except ValueError:
            number = None
        if number is not None and kind is float:
            return number
        if number is not None and number.is_integer():
            return int(number)
    elif kind is str:
        return text
    raise InputError(f"--{name} {text}: expected {expected(kind)}")


def expected(kind: Any) -> str:
    """A type in words: what a value must look like."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(expected(a) for a in arguments)
    if origin is tuple:
        return f"{expected(arguments[0])} values, separated by commas"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words[type(None)] = "none"
    return words.get(kind) or f"{kind.__name__}(...) in the file"
