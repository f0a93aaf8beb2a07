"""Lists all components, with the settings of each and a sentence that describes it."""

import dataclasses
import importlib
import inspect
import re
import textwrap
from typing import Any

from mdlm.config.component_text import to_text
from mdlm.config.components import FACES, fitting, name_of, nearest
from mdlm.config.field_types import default_of
from mdlm.errors import InputError


def kinds() -> dict[str, type]:
    """The kinds of components (sampler, objective, schedule ...) by name in lower case."""
    found = (getattr(importlib.import_module(f), n) for f in FACES for n in _names(f))
    bases = dict.fromkeys(kind for kind in found if inspect.isabstract(kind))
    whole = [kind for kind in bases if not any(base in bases for base in kind.__mro__[1:])]
    return {kind.__name__.lower().removesuffix("config"): kind for kind in whole}


def kind_called(name: str) -> type:
    """Returns the kind of a name, singular or plural. Raises InputError if there is none."""
    known = kinds()
    for word in (name.lower(), name.lower().removesuffix("s"), name.lower().removesuffix("es")):
        if word in known:
            return known[word]
    raise InputError(f"{name}: no kind of component{nearest(name.lower(), known)}")


def described(*wanted: type) -> str:
    """Describes the components of some kinds: fields with their defaults, and a sentence on each.

    Fields that all components of the first kind share are listed once, at the end.
    """
    first = wanted[0]
    common = (
        {f.name: default_of(f) for f in dataclasses.fields(first)}
        if dataclasses.is_dataclass(first)
        else {}
    )
    listed = list(dict.fromkeys(part for kind in wanted for part in fitting((kind,))))
    lines = []
    for part in listed:
        own = [f for f in dataclasses.fields(part) if not _is_common(f, common)]
        own.sort(key=lambda f: default_of(f) is not dataclasses.MISSING)  # required ones first
        said = f"{name_of(part)}({', '.join(map(_field, own))})"
        lines.append(f"{said}\n{_about(part, listed)}\n")
    if common:
        shared = ", ".join(_field(field) for field in dataclasses.fields(first))
        name = first.__name__.lower()
        lines.append(f"every {name} also has, unless listed above: {shared}")
        for field in dataclasses.fields(first):
            about = f"    {field.name}: {sentence_on(first, field.name)}"
            lines.append(textwrap.fill(about, 96, subsequent_indent="        "))
    return "\n".join(lines).rstrip("\n")


def sentence_on(kind: type, name: str) -> str:
    """Returns the sentence about a field in the docstrings of a class, its bases and their files.

    That is its entry under `Args:`, else the first sentence with its name in backquotes, else "".
    """
    for one in kind.__mro__:
        if not dataclasses.is_dataclass(one):
            continue
        own = inspect.cleandoc(one.__doc__ or "")
        if entry := re.search(rf"^ +{name}: (.*(?:\n {{8,}}.*)*)", own, re.MULTILINE):
            return " ".join(entry[1].split())
        for text in (own, inspect.getdoc(inspect.getmodule(one)) or ""):
            for sentence in re.split(r"\n\n|(?<=[.:])\s+(?=[A-Z`])", text):
                if re.search(rf"`[^`]*\b{name}\b[^`]*`", sentence):
                    return " ".join(sentence.split())
    return ""


def sentence_of(component: Any) -> str:
    """Returns the first sentence about a component's class: that of its docstring or file."""
    text = _first_paragraph(type(component), [])
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def _names(face: str) -> list[str]:
    return importlib.import_module(face).__all__


def _is_common(field: dataclasses.Field, common: dict[str, Any]) -> bool:
    return field.name in common and default_of(field) == common[field.name]


def _about(kind: type, listed: list[type]) -> str:
    first = _first_paragraph(kind, listed)
    return textwrap.fill(first, 96, initial_indent="    ", subsequent_indent="    ")


def _first_paragraph(kind: type, listed: list[type]) -> str:
    """The first paragraph of the docstring of its file, or of the class if the file has several."""
    module: Any = inspect.getmodule(kind)
    several = [other for other in listed if other.__module__ == kind.__module__]
    text = inspect.getdoc(module if len(several) == 1 else kind) or ""
    return " ".join(text.split("\n\n")[0].split())


def _field(field: dataclasses.Field) -> str:
    default = default_of(field)
    if default is dataclasses.MISSING:
        return field.name
    return f"{field.name}={to_text(default, lenient=True)}"
