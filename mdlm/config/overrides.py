"""Typed overrides: `--train.steps 2000` replaces one value of an experiment.

Names are dotted paths through the components. A value is parsed as the declared type of the field,
a component (`--network "DiT(width=64)"`) as in `mdlm.config.component_text`. The error for an
unknown name suggests the most similar known one. All values are assigned before they are validated
together, so values that depend on each other may be given in any order.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from mdlm.config.component_text import from_text
from mdlm.config.field_types import hints_of
from mdlm.errors import InputError


def apply(root, assignments: Sequence[tuple[str, str]]):
    """Returns `root` with each `(dotted name, text)` assigned, in order. In names, dashes are
    underscores.

    Raises InputError if a name does not exist, a text is no value of its type, or the values
    contradict each other.
    """
    draft = _Draft(root)
    for name, text in assignments:
        name = name.replace("-", "_")
        draft.assign(root, name.split("."), name, text)
    return draft.finished()


def names(component: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields `(dotted name, declared type, value)` for all fields below a component.

    A field that is a component comes before its own fields.
    """
    hints = hints_of(type(component))
    for f in dataclasses.fields(component):
        value = getattr(component, f.name)
        yield prefix + f.name, hints[f.name], value
        if dataclasses.is_dataclass(value):
            yield from names(value, f"{prefix}{f.name}.")


class _Draft:
    """A component with pending changes, which are validated together by `finished`."""

    def __init__(self, component: Any):
        self.component = component
        self.values: dict[str, Any] = {}
        self.given: list[str] = []

    def assign(self, root: Any, path: list[str], whole: str, text: str) -> None:
        head, rest = path[0], path[1:]
        fields = {f.name for f in dataclasses.fields(self.component)}
        value = None
        if head in fields:
            value = self.values.get(head, getattr(self.component, head))
        if rest and not isinstance(value, _Draft) and dataclasses.is_dataclass(value):
            value = self.values[head] = _Draft(value)
        if head not in fields or (rest and not isinstance(value, _Draft)):
            raise _no_such(root, whole)
        self.given.append(f"--{whole} {text}")
        if isinstance(value, _Draft) and rest:
            value.assign(root, rest, whole, text)
        else:
            kind = hints_of(type(self.component))[head]
            self.values[head] = from_text(text, kind, f"--{whole} {text}")

    def finished(self) -> Any:
        """Returns the component with its new values. Raises InputError if they are invalid."""
        values = {n: v.finished() if isinstance(v, _Draft) else v for n, v in self.values.items()}
        if not values:
            return self.component
        try:
            return dataclasses.replace(self.component, **values)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{' '.join(self.given)}: {error}") from error


def _no_such(root: Any, whole: str) -> InputError:
    known = [name for name, _, _ in names(root)]
    last = whole.split(".")[-1]
    lasts = {name.split(".")[-1]: name for name in reversed(known)}  # the first of each
    first_letters = lambda one: "".join(part[:1] for part in one.split("_"))
    initials = {first_letters(one): name for one, name in lasts.items() if "_" in one}
    near = difflib.get_close_matches(whole, known, n=1, cutoff=0.5) or [
        found[one]
        for found in (lasts, initials)
        for one in difflib.get_close_matches(last, found, n=1, cutoff=0.75)
    ]
    hint = f"; did you mean --{near[0]}?" if near else ""
    return InputError(f"--{whole}: the experiment has no such setting{hint}")
