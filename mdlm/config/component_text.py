"""Values as text, and text as values: `Parallel(rule=Threshold(tau=0.9))`.

A component is written as an experiment file would write it, without the fields that are at their
default. Text is read as the type that a field is declared with, and nothing in it is executed:

    Ancestral(steps=64, top_p=0.9)      a component; its fields by name, each checked by its type
    Ancestral                           the same, with all fields at their default
    64    1e3    2_000    0.5    inf    numbers; a whole number is exact
    true  false  none                   also yes, no, on, off
    cosine                              one of several words
    one.txt    one.txt,two.txt          text, or several, as a whole value of a command line
    'one.txt'  ('one.txt', 'two.txt')   the same inside of a component
"""

import ast
import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, Union

import numpy as np

from mdlm.config.components import UnknownComponent, find, fitting, name_of, nearest
from mdlm.errors import InputError

YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
NOTHING = type(None)


def from_text(
    text: str,
    kind: Any,
    title: str = "",
    *,
    known: Mapping[str, type] | None = None,
    quoted: bool = False,
) -> Any:
    """The value of the type `kind` that `text` says.

    `title` begins each error: what was given where, by default the text. `known` are classes by
    name, beside those that are found by name anyway. With `quoted` text stands in quotes, as inside
    of a component. Raises InputError if the text says no such value, and UnknownComponent if it
    names a component that is found nowhere.
    """
    title = _one_line(title or text)
    return _Reader(title, known or {}).value(text, kind, outer=not quoted)


def to_text(value: Any, *, lenient: bool = False) -> str:
    """A value as it is written: a component by its name and the fields that are not at their
    default.

    Raises InputError if a part of it, such as a function, cannot be written; with `lenient` that
    part is written as it prints, and the text cannot be read again.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        texts = to_texts(value, lenient=lenient)
        return f"{name_of(type(value))}({', '.join(f'{k}={v}' for k, v in texts.items())})"
    if isinstance(value, (tuple, list)):
        items = [to_text(item, lenient=lenient) for item in value]
        if isinstance(value, list):
            return f"[{', '.join(items)}]"
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, np.generic):
        value = value.item()
    if lenient or isinstance(value, (bool, int, float, str, NOTHING)):
        return repr(value)
    what = f"the function {value.__name__}" if inspect.isroutine(value) else repr(value)
    raise InputError(f"{_one_line(what)} cannot be written as text, so no run can record it")


def to_texts(component: Any, *, lenient: bool = False) -> dict[str, str]:
    """The fields of a component that are not at their default, each as text."""
    texts = {}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if field.init and value != default_of(field):
            try:
                texts[field.name] = to_text(value, lenient=lenient)
            except InputError as error:
                raise InputError(f"{field.name}: {error}") from error
    return texts


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field, MISSING where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def missing_in(values: Mapping[str, Any], kind: type) -> list[str]:
    """The fields of a component that have no default and no value here."""
    needed = [f.name for f in dataclasses.fields(kind) if default_of(f) is dataclasses.MISSING]
    return [name for name in needed if name not in values]


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The declared types of a component's fields."""
    return typing.get_type_hints(kind)


def expected(kind: Any, brief: bool = False) -> str:
    """A type in words: what a value must look like. `brief` names no more than its kinds."""
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
    """The types of which a declared type allows any."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        return tuple(option for one in typing.get_args(kind) for option in options(one))
    return (kind,)


class _Unfit(Exception):
    """The text says no value of this type."""


@dataclasses.dataclass(frozen=True)
class _Reader:
    title: str
    known: Mapping[str, type]

    def value(self, text: str, kind: Any, *, outer: bool, name: str = "") -> Any:
        """`outer`: the text is a whole value of the command line, where text needs no quotes.
        `name`: of the field that it is for."""
        found = options(kind)
        # Where one or several are possible, a comma tells; words such as `none` come before text.
        many = outer and "," in text
        plain = [option for option in found if not _is_kind(option)]
        plain.sort(key=lambda option: ((_items(option) is not None) != many, option is str))
        for option in plain:
            try:
                return self._plain(text, option, outer)
            except _Unfit:
                continue
        kinds = tuple(option for option in found if _is_kind(option))
        try:
            if kinds:
                return self._component(text, kinds, alone=len(kinds) == len(found))
        except _Unfit:
            pass
        given = f"{name}={_one_line(text)}: " if name else ""
        raise InputError(f"{self.title}: {given}expected {expected(kind)}")

    def _plain(self, text: str, kind: Any, outer: bool) -> Any:
        """A value that is no component. _Unfit where the text says none of that type."""
        text, word = (text if outer else text.strip()), text.strip().lower()
        if kind is NOTHING and word == "none":
            return None
        if kind is bool and word in (*YES, *NO):
            return word in YES
        if kind is int:
            return _whole(word)
        if kind is float:
            return _number(word)
        if kind is str:
            return text if outer else _quoted(text)
        if typing.get_origin(kind) is Literal:
            chosen = text.strip() if text.strip()[:1] not in ("'", '"') else _quoted(text)
            for option in typing.get_args(kind):
                if str(option) == chosen:
                    return option
        if (items := _items(kind)) is not None:
            several = self._several(text, items, outer)
            return list(several) if typing.get_origin(kind) is list else several
        if kind is Any:
            return _literal(text)
        raise _Unfit

    def _several(self, text: str, items: tuple[Any, ...], outer: bool) -> tuple:
        node = _parsed(text) if not outer or text.strip()[:1] in ("(", "[") else None
        if isinstance(node, (ast.Tuple, ast.List)):
            parts, outer = [_source(text, item) for item in node.elts], False
        elif outer and not any(map(_is_kind, items)):
            parts = [part for part in text.split(",") if part]
        else:
            raise _Unfit
        if items[-1] is ...:
            items = items[:1] * len(parts)
        if len(items) != len(parts):
            raise _Unfit
        found = []
        for part, kind in zip(parts, items, strict=True):
            try:
                found.append(self.value(part, kind, outer=outer))
            except UnknownComponent:
                raise
            except InputError as error:
                if any(map(_is_kind, options(kind))):
                    raise
                raise _Unfit from error
        return tuple(found)

    def _component(self, text: str, kinds: tuple[type, ...], *, alone: bool) -> Any:
        node = _parsed(text)
        call = node if isinstance(node, ast.Call) else None
        named = node if call is None else call.func
        if not isinstance(named, (ast.Name, ast.Attribute)):
            raise _Unfit
        name = ast.unparse(named)
        found = find(name, self.known)
        if found is None:
            if call is None and not alone:  # a word where a number, for one, is possible too
                raise _Unfit
            near = nearest(name, [name_of(fit) for fit in fitting(kinds)])
            raise UnknownComponent(f"{self.title}: there is no {name}{near}")
        if not issubclass(found, kinds) or inspect.isabstract(found):
            raise _Unfit
        return self._made(found, name, [] if call is None else call.keywords, text, call)

    def _made(
        self,
        kind: type,
        name: str,
        keywords: list[ast.keyword],
        text: str,
        call: ast.Call | None,
    ) -> Any:
        fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
        if call is not None and call.args:
            form = f"takes its values by name, as {next(iter(fields))}=..." if fields else ""
            raise InputError(f"{self.title}: {name} {form or 'takes no values'}")
        values = {}
        for keyword in keywords:
            field = keyword.arg or "**"
            if field not in fields:
                near = nearest(field, fields) if fields else ""
                raise InputError(f"{self.title}: {name} has no {field}{near}")
            given = _source(text, keyword.value)
            values[field] = self.value(given, hints_of(kind)[field], outer=False, name=field)
        if missing := missing_in(values, kind):
            needed = ", ".join(f"{field}=..." for field in missing)
            raise InputError(f"{self.title}: {name}({needed}) must be given, it has no default")
        try:
            return kind(**values)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.title}: {_one_line(str(error))}") from error


def _is_kind(kind: Any) -> bool:
    """Whether a declared type is that of components."""
    is_class = isinstance(kind, type) and not typing.get_args(kind)
    return is_class and kind not in (*WORDS, NOTHING, Any)


def _items(kind: Any) -> tuple[Any, ...] | None:
    """The types of the items, where a declared type is that of several; else None."""
    if typing.get_origin(kind) is list:
        return (*typing.get_args(kind), ...)
    return typing.get_args(kind) if typing.get_origin(kind) is tuple else None


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _source(text: str, node: ast.expr) -> str:
    return ast.get_source_segment(text.strip(), node) or ast.unparse(node)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise _Unfit from error


def _quoted(text: str) -> str:
    value = _literal(text)
    if isinstance(value, str):
        return value
    raise _Unfit


def _number(text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError as error:
        raise _Unfit from error


def _whole(text: str) -> int:
    """An exact whole number, `1e3` and `2.0` too."""
    digits = text.replace("_", "")
    if re.fullmatch(r"[+-]?\d{1,1000}", digits):
        return int(digits)
    try:
        number = Decimal(digits)
    except InvalidOperation as error:
        raise _Unfit from error
    # No number of this kind has hundreds of digits, which would take long to write out.
    if number.is_finite() and number.adjusted() < 100 and math.floor(number) == number:
        return int(number)
    raise _Unfit


def _one_line(text: str) -> str:
    return " ".join(text.split())
