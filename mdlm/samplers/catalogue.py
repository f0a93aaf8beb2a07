"""All samplers, and how one is written on a command line.

    Ancestral(steps=64, top_p=0.9)
    Parallel(rule=Threshold(tau=0.9), temperature=0)

The text is what an experiment file would say; it is read, not executed.
"""

import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
import typing
from typing import Any, Literal

from mdlm.errors import InputError
from mdlm.samplers.ancestral import Ancestral
from mdlm.samplers.base import Sampler
from mdlm.samplers.blocks import BlockByBlock
from mdlm.samplers.editing import Editing
from mdlm.samplers.first_hitting import FirstHitting
from mdlm.samplers.left_to_right import LeftToRight
from mdlm.samplers.logits.guidance import ClassifierFree
from mdlm.samplers.logits.shaping import Annealed
from mdlm.samplers.parallel import Parallel
from mdlm.samplers.path_planning import PathPlanning
from mdlm.samplers.psi import Psi
from mdlm.samplers.remask import Remask, RemaskLoop
from mdlm.samplers.reverse import Reverse
from mdlm.samplers.score import Euler, Tweedie
from mdlm.samplers.self_correction import SelfCorrection
from mdlm.samplers.unmasking_rules import (
    EntropyBound,
    Factor,
    FixedCount,
    MaskGIT,
    Share,
    Threshold,
)

SAMPLERS: tuple[type[Sampler], ...] = (
    Ancestral,
    FirstHitting,
    Parallel,
    Remask,
    RemaskLoop,
    Psi,
    PathPlanning,
    Editing,
    Reverse,
    SelfCorrection,
    Tweedie,
    Euler,
    BlockByBlock,
    LeftToRight,
)
PARTS: tuple[type, ...] = (
    FixedCount,
    Share,
    Threshold,
    Factor,
    EntropyBound,
    MaskGIT,
    Annealed,
    ClassifierFree,
)
"""What a sampler may be made of."""


def from_text(text: str) -> Sampler:
    """The sampler that `text` says. InputError, in one line, for a text that says none."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"--sampler {text}: not of the form Name(field=value, ...)") from error
    made = _value(node, text)
    if not isinstance(made, Sampler):
        names = ", ".join(kind.__name__ for kind in SAMPLERS)
        raise InputError(f"--sampler {text}: not a sampler; there are {names}")
    return made


def to_text(sampler: Any) -> str:
    """A sampler as it would be written: its name, and the fields that are not at their default."""
    said = []
    for field in dataclasses.fields(sampler):
        value = getattr(sampler, field.name)
        if value != field.default:
            is_part = dataclasses.is_dataclass(value)
            said.append(f"{field.name}={to_text(value) if is_part else repr(value)}")
    return f"{type(sampler).__name__}({', '.join(said)})"


def described() -> str:
    """Every sampler and what it may be made of: fields with their defaults, and what it is."""
    common = {field.name: field.default for field in dataclasses.fields(Sampler)}
    is_common = lambda field: field.name in common and field.default == common[field.name]
    lines = []
    for kind in (*SAMPLERS, *PARTS):
        own = [field for field in dataclasses.fields(kind) if not is_common(field)]
        lines.append(f"{kind.__name__}({', '.join(map(_field, own))})\n{_about(kind)}\n")
    shared = ", ".join(_field(field) for field in dataclasses.fields(Sampler))
    return "\n".join([*lines, f"and of each sampler, unless it says otherwise: {shared}"])


def _about(kind: type) -> str:
    """The title of its file, or of the class where the file has several."""
    module: Any = inspect.getmodule(kind)
    several = [other for other in (*SAMPLERS, *PARTS) if other.__module__ == kind.__module__]
    text = inspect.getdoc(module if len(several) == 1 else kind) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return textwrap.fill(first, 96, initial_indent="    ", subsequent_indent="    ")


def _field(field: dataclasses.Field) -> str:
    is_needed = field.default is dataclasses.MISSING and (
        field.default_factory is dataclasses.MISSING
    )
    return field.name if is_needed else f"{field.name}={field.default!r}"


def _value(node: ast.AST, text: str) -> Any:
    kinds = {kind.__name__: kind for kind in (*SAMPLERS, *PARTS)}
    if isinstance(node, ast.Name) and node.id in kinds:
        node = ast.Call(node, [], [])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _made(node, kinds, text)
    try:
        return ast.literal_eval(node)  # numbers, texts, True, None, tuples of those
    except (TypeError, ValueError) as error:
        what = ast.unparse(node)
        raise InputError(f"--sampler {text}: {what} is neither a value nor Name(...)") from error


def _made(node: ast.Call, kinds: dict[str, type], text: str) -> Any:
    name = node.func.id  # type: ignore[attr-defined]
    if name not in kinds:
        raise InputError(f"--sampler {text}: there is no {name}{_near(name, list(kinds))}")
    fields = [field.name for field in dataclasses.fields(kinds[name]) if field.init]
    if node.args:
        raise InputError(f"--sampler {text}: {name} takes its values by name, as {fields[0]}=...")
    hints = typing.get_type_hints(kinds[name])
    values = {}
    for keyword in node.keywords:
        if keyword.arg not in fields:
            near = _near(keyword.arg or "**", fields)
            raise InputError(f"--sampler {text}: {name} has no {keyword.arg}{near}")
        value = values[keyword.arg] = _value(keyword.value, text)
        if not _fits(value, hints[keyword.arg]):
            said = ast.unparse(keyword.value)
            raise InputError(
                f"--sampler {text}: {keyword.arg}={said}: expected {_said(hints[keyword.arg])}"
            )
    try:
        return kinds[name](**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"--sampler {text}: {error}") from error


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value can be what a field is declared as. No function can be written as text."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(entry, arguments[0]) for entry in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def _said(kind: Any) -> str:
    """A field's type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        options = [_said(option) for option in arguments]
        return " or ".join(option for option in options if option)
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin is tuple:
        return f"({_said(arguments[0])}, ...)"
    words = {int: "a whole number", float: "a number", type(None): "None"}
    if kind in words:
        return words[kind]
    if not isinstance(kind, type):
        return ""
    known = [part for part in (*SAMPLERS, *PARTS) if issubclass(part, kind)]
    return " or ".join(f"{part.__name__}(...)" for part in known)


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
