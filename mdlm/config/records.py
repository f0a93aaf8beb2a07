"""Writes and reads the records of components in run folders, checkpoints and stores.

A record has the fields of a component that are not at their default, each as text. Therefore a
component class may gain a field with a default: older records still equal it. Records of earlier
versions, which list every field, are read too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mdlm.config.component_text import from_text, to_text, to_texts
from mdlm.config.components import classes_in
from mdlm.config.field_types import default_of, hints_of, missing_in
from mdlm.errors import InputError

record = to_texts
"""Returns the record of a component."""


def read(
    values: Mapping[str, Any], kind: type, title: str, known: Mapping[str, type] | None = None
) -> Any:
    """Reads a component of class `kind` from its record.

    Raises InputError if this version cannot read a part of the record, and UnknownComponent if the
    part is a component that is not found.
    """
    found = read_fields(values, kind, title, known)
    if missing := missing_in(found, kind):
        raise InputError(f"{title}: missing {', '.join(missing)}")
    try:
        return kind(**found)
    except (TypeError, ValueError) as error:
        raise InputError(f"{title}: {error}") from error


def read_fields(
    values: Mapping[str, Any], kind: type, title: str, known: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """Reads the fields of a record, some of which may be missing."""
    hints, found = hints_of(kind), {}
    is_old = "class" in values
    for name, value in values.items():
        if is_old and name == "class":
            continue
        text = _old_text(value) if is_old else value
        if name not in hints or not isinstance(text, str):
            raise InputError(f"{title}: {kind.__name__} has no {name}")
        where = f"{title}: {name}={text}"
        found[name] = from_text(text, hints[name], where, known=known, quoted=True)
    return found


def is_same(text: str, component: Any, kind: type) -> bool:
    """Whether a recorded text describes this component, which is a `kind`."""
    if text == to_text(component, lenient=True):
        return True
    try:
        return from_text(text, kind, known=classes_in(component)) == component
    except InputError:
        return False


def differences(
    a: Any, b: Any, name: str = "", *, form: str = "{}: {} there, {} here"
) -> list[str]:
    """Lists the fields in which two components, or dictionaries of them, differ: dotted name and
    both values, in `form`."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        a, b = vars(a), vars(b)
    if isinstance(a, dict) and isinstance(b, dict):
        out = []
        for k in dict.fromkeys([*a, *b]):
            out += differences(a.get(k), b.get(k), f"{name}.{k}" if name else k, form=form)
        return out
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [one for i, (x, y) in pairs for one in differences(x, y, f"{name}[{i}]", form=form)]
    if a == b:
        return []
    there, here = (to_text(value, lenient=True) for value in (a, b))
    return [form.format(name, there, here)]


def with_defaults(component: Any, names: tuple[str, ...]) -> Any:
    """Returns the component with the fields of these names reset to their defaults."""
    fields = [f for f in dataclasses.fields(component) if f.name in names]
    return dataclasses.replace(component, **{f.name: default_of(f) for f in fields})


def describe(component: Any) -> Any:
    """Converts a component to plain JSON values for other tools: its class name and all fields."""
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        values = {
            f.name: describe(getattr(component, f.name)) for f in dataclasses.fields(component)
        }
        return {"class": type(component).__name__, **values}
    if isinstance(component, (tuple, list)):
        return [describe(item) for item in component]
    return component


def _old_text(value: Any) -> str:
    """The text of a part that an earlier version recorded as JSON."""
    if isinstance(value, dict) and "class" in value:
        fields = [f"{name}={_old_text(v)}" for name, v in value.items() if name != "class"]
        return f"{value['class']}({', '.join(fields)})"
    if isinstance(value, list):
        return f"({''.join(f'{_old_text(item)}, ' for item in value).rstrip(' ')})"
    return repr(value)
