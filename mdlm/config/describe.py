"""Components as plain JSON values, and where two descriptions differ."""

import dataclasses
from typing import Any


def describe(component: Any) -> Any:
    """A component as plain JSON values: its class name and its fields."""
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        values = {
            f.name: describe(getattr(component, f.name)) for f in dataclasses.fields(component)
        }
        return {"class": type(component).__name__, **values}
    if isinstance(component, (tuple, list)):
        return [describe(item) for item in component]
    return component


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """The dotted names at which two descriptions differ, with both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        out = []
        for k in dict.fromkeys([*a, *b]):
            out += differences(a.get(k), b.get(k), f"{name}.{k}" if name else k)
        return out
    return [] if a == b else [f"{name}: {a} there, {b} here"]
