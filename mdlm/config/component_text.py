"""Writes values as text and reads them back: `Parallel(rule=Threshold(tau=0.9))`.

A component is written as in an experiment file, without the fields that are at their default. Text
is parsed as the declared type of a field, and nothing in it is executed:

    Ancestral(steps=64, top_p=0.9)      a component; its fields by name, each checked by its type
    Ancestral                           the same component, all fields at their default
    64    1e3    2_000    0.5    inf    numbers; a whole number is exact
    true  false  none                   also yes, no, on, off
    cosine                              one of the allowed words
    one.txt    one.txt,two.txt          text, or several texts, as a value on the command line
    'one.txt'  ('one.txt', 'two.txt')   the same inside a component
"""

import ast
import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import numpy as np

from mdlm.config.components import UnknownComponent, find, fitting, name_of, nearest
from mdlm.config.field_types import (
    NOTHING,
    default_of,
    expected,
    hints_of,
    is_kind,
    items_of,
    missing_in,
    options,
)
from mdlm.errors import InputError

FIT = (
    "a component is a frozen dataclass, @dataclass(frozen=True, kw_only=True), and its fields hold"
    " numbers, texts, true or false, None, components, and tuples of these"
)
"""What a component must be: the end of messages."""
YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def from_text(
    text: str,
    kind: Any,
    title: str = "",
    *,
    known: Mapping[str, type] | None = None,
    quoted: bool = False,
) -> Any:
    """Reads a value of the type `kind` from `text`.

    Args:
        text: the value as text.
        kind: its declared type.
        title: beginning of each error message: what was given and where; by default the text.
        known: additional component classes by name.
        quoted: whether strings are in quotes, as inside a component.

    Raises InputError if the text is no such value, and UnknownComponent if it names a component
    that is not found.
    """
    title = _one_line(title or text)
    return _Reader(title, known or {}).value(text, kind, outer=not quoted)


def to_text(value: Any, *, lenient: bool = False) -> str:
    """Writes a value as text: a component by its name and the fields that are not at their default.

    Raises InputError if a part of it, such as a function, cannot be written. With `lenient` such a
    part is written with `repr`, and the text cannot be read back.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made: Any = type(value)
        if not (lenient or made.__dataclass_params__.frozen):
            raise InputError(
                f"{type(value).__name__}(...) is not frozen, so no run can record it; {FIT}"
            )
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
    raise InputError(
        f"{_one_line(what)[:80]} cannot be written as text, so no run can record it; {FIT}"
    )


def to_texts(component: Any, *, lenient: bool = False) -> dict[str, str]:
    """The fields of a component that are not at their default, each as text."""
    texts = {}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if field.init and not _is_equal(value, default_of(field)):
            try:
                texts[field.name] = to_text(value, lenient=lenient)
            except InputError as error:
                raise InputError(f"{field.name}: {error}") from error
    return texts


def _is_equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # arrays, and other values whose comparison is no truth value
        return False


class _Unfit(Exception):
    """The text is no value of this type."""


@dataclasses.dataclass(frozen=True)
class _Reader:
    title: str
    known: Mapping[str, type]

    def value(self, text: str, kind: Any, *, outer: bool, name: str = "") -> Any:
        """Reads a value. `outer`: the text is a value of the command line, where strings need no
        quotes. `name`: the field that the value is for."""
        found = options(kind)
        # A comma decides between one value and several. Plain text comes last, after `none`.
        many = outer and "," in text
        plain = [option for option in found if not is_kind(option)]
        plain.sort(key=lambda option: ((items_of(option) is not None) != many, option is str))
        for option in plain:
            try:
                return self._plain(text, option, outer)
            except _Unfit:
                continue
        kinds = tuple(option for option in found if is_kind(option))
        try:
            if kinds:
                return self._component(text, kinds, alone=len(kinds) == len(found))
        except _Unfit:
            pass
        given = f"{name}={_one_line(text)}: " if name else ""
        raise InputError(f"{self.title}: {given}expected {expected(kind)}")

    def _plain(self, text: str, kind: Any, outer: bool) -> Any:
        """Reads a value that is no component. Raises _Unfit if the text is none of that type."""
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
        if (items := items_of(kind)) is not None:
            several = self._several(text, items, outer)
            return list(several) if typing.get_origin(kind) is list else several
        if kind is Any:
            return _literal(text)
        raise _Unfit

    def _several(self, text: str, items: tuple[Any, ...], outer: bool) -> tuple:
        if outer and any(map(is_kind, items)) and text.strip()[:1] not in ("(", "["):
            text = f"({text},)"  # components, as they are typed on the command line
        node = _parsed(text) if not outer or text.strip()[:1] in ("(", "[") else None
        if isinstance(node, (ast.Tuple, ast.List)):
            parts, outer = [_source(text, item) for item in node.elts], False
        elif outer:
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
                if any(map(is_kind, options(kind))):
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
            if call is None and not alone:  # other types, such as numbers, are allowed too
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
        number = float(text.replace("_", ""))
    except ValueError as error:
        raise _Unfit from error
    if math.isnan(number):  # which every comparison with a bound lets pass
        raise _Unfit
    return number


def _whole(text: str) -> int:
    """Reads an exact whole number; `1e3` and `2.0` are allowed too."""
    digits = text.replace("_", "")
    if re.fullmatch(r"[+-]?\d{1,1000}", digits):
        return int(digits)
    try:
        number = Decimal(digits)
    except InvalidOperation as error:
        raise _Unfit from error
    # A bound on the digits: a setting never has hundreds, and `1e999999` would take long.
    if number.is_finite() and number.adjusted() < 100 and math.floor(number) == number:
        return int(number)
    raise _Unfit


def _one_line(text: str) -> str:
    return " ".join(text.split())
