"""The one reader of JSON files: a value of a declared type, or the reason why it is none.

Types are those of Python's annotations: dataclasses, typed dictionaries, `list[int]`, `Literal`,
and `Annotated` with a range, a length or a pattern (`msgspec.Meta`). Nothing is converted: true is
no number. NaN, numbers beyond 64 bits and halves of surrogate pairs are no JSON here.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=2**62)]
"""A number of things."""
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
"""A checksum, which may be the name of a folder."""
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,80}$")]
"""A word that is part of the name of a file, and never a path."""


def decoded(content: str | bytes, kind: type[T] | Any = Any) -> T:
    """Returns the value in a JSON text. Raises ValueError, with the reason, if it is no `kind`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def converted(value: Any, kind: type[T] | Any) -> T:
    """Returns a value that was read as JSON as a `kind`. Raises ValueError if it is none."""
    try:
        return msgspec.convert(value, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
