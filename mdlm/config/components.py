"""Finds components by name: those of this package, and those of other installed packages.

A component is a frozen dataclass whose fields are its settings. The package's own are the classes
that its folders export in `__all__` (`from mdlm.samplers import Parallel`). Another package adds
components with entry points of the group `mdlm.components`, each of which names a class:

    [project.entry-points."mdlm.components"]
    Theirs = "their_package.schedules:Theirs"

Nothing is imported before a name is looked up.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
from collections.abc import Iterable, Mapping
from importlib import metadata

from mdlm.errors import InputError

GROUP = "mdlm.components"
FACES = (
    "mdlm.samplers",
    "mdlm.objectives",
    "mdlm.schedules",
    "mdlm.processes",
    "mdlm.parameterizations",
    "mdlm.models",
    "mdlm.data",
    "mdlm.experiment",
    "mdlm.parallel.mesh",
    "mdlm.optim",
    "mdlm.tuning",
    "mdlm.times",
)
"""Modules that export components in `__all__`."""


class UnknownComponent(InputError):
    """No component has this name."""


def find(name: str, known: Mapping[str, type] | None = None) -> type | None:
    """Returns the component class of that name, or None if there is none.

    It looks in `known`, in this package, then in installed packages. Raises InputError if an
    installed package declares the name and cannot be imported.
    """
    if known and name in known:
        return known[name]
    return _own(name) or _installed(name)


def name_of(kind: type) -> str:
    """The name under which `find` returns this class; if there is none, `module.name`."""
    name = kind.__name__
    if _own(name) is kind:
        return name
    package = kind.__module__.partition(".")[0]
    for entry in _entry_points().values():
        if entry.module.partition(".")[0] == package and _own(entry.name) is None:
            if _installed(entry.name) is kind:
                return entry.name
    return f"{kind.__module__}.{name}"


def fitting(kinds: tuple[type, ...]) -> list[type]:
    """All component classes that are of one of these kinds."""
    own = (_own(name) for face in FACES for name in importlib.import_module(face).__all__)
    installed = (_installed(name) for name in _entry_points() if _own(name) is None)
    found = dict.fromkeys(kind for kind in (*own, *installed) if kind is not None)
    return [kind for kind in found if issubclass(kind, kinds) and not inspect.isabstract(kind)]


def classes_in(value: object) -> dict[str, type]:
    """The classes of a component and of all its parts, by name.

    Given as `known`, they allow reading texts about classes that `find` alone would not find.
    """
    found: dict[str, type] = {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        found[name_of(kind)] = kind
        if _own(kind.__name__) is None and _installed(kind.__name__) is None:
            found[kind.__name__] = kind  # as earlier versions wrote it, without the module
        for field in dataclasses.fields(value):
            found = {**classes_in(getattr(value, field.name)), **found}
    elif isinstance(value, (tuple, list)):
        for item in value:
            found |= classes_in(item)
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known name, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; choose one of {', '.join(known)}"


def _own(name: str) -> type | None:
    for face in FACES:
        module = importlib.import_module(face)
        if name in module.__all__:
            found = getattr(module, name)
            return found if _is_component(found) else None
    return None


def _installed(name: str) -> type | None:
    entry = _entry_points().get(name)
    if entry is None:
        return None
    try:
        found = entry.load()
    except Exception as error:  # importing another package may raise anything
        raise InputError(
            f"{name}: the entry point {entry.value} of an installed package cannot be loaded"
            f" ({type(error).__name__}: {error})"
        ) from error
    if not _is_component(found):
        raise InputError(
            f"{name}: the entry point {entry.value} of an installed package is no frozen dataclass"
        )
    return found


@functools.cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def _is_component(found: object) -> bool:
    """Whether it is a component class, or an abstract kind of components."""
    return isinstance(found, type) and (
        dataclasses.is_dataclass(found) or inspect.isabstract(found)
    )
