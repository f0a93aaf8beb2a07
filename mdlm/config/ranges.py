"""The range that every number of an experiment has, whatever its meaning: that of its type.

A component checks what its own values mean. Here is what no value can be: a whole number that the
devices, which count in 32 bits, cannot hold, a number that is not finite, half a character.
"""

import dataclasses
import math
from typing import Any

LARGEST, LARGEST_SEED = 2**31 - 1, 2**63 - 1


def check_ranges(component: Any, name: str = "") -> None:
    """Raises ValueError, with the dotted name, if a value in a component is out of range.

    Infinity is allowed where a field has the metadata `{"infinite": True}`.
    """
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if "infinite" in field.metadata and value == math.inf:
            continue
        most = LARGEST_SEED if field.name == "seed" else LARGEST
        _check(value, f"{name}{field.name}", most)


def _check(value: Any, name: str, most: int) -> None:
    if isinstance(value, int) and abs(value) > most:
        raise ValueError(f"{name}={_brief(value)}: must be at most {most}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be a finite number")
    if isinstance(value, str) and not _is_encodable(value):
        raise ValueError(f"{name}={value!r}: has half of a surrogate pair, which is no text")
    if isinstance(value, tuple | list):
        for number, part in enumerate(value):
            _check(part, f"{name}[{number}]", most)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_ranges(value, f"{name}.")


def _is_encodable(text: str) -> bool:
    """Whether a text is UTF-8, or the name of a file that is not."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _brief(value: int) -> str:
    """A number that may have thousands of digits, which Python refuses to write."""
    return str(value) if abs(value) < 10**20 else f"about 2**{value.bit_length()}"
