"""Executes experiment files.

An experiment file is Python that defines `experiment = Experiment(...)`. Execute one only from
people you would run code from. Modules beside it can be imported, as by `python FILE`, except that
installed packages come first.
"""

import importlib
import inspect
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mdlm.config.component_text import from_text
from mdlm.config.overrides import apply
from mdlm.data.dataset import TextData
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.old_names import old_names
from mdlm.experiment.shipped import located

Changes = Sequence[tuple[str, str]]
"""Names and values, both as text, in the order in which they were given."""
MODULE = "mdlm_experiment"
"""The module that an experiment file becomes. The last one executed is found under this name."""
_folders: list[str] = []
"""The folder of the last one, where it was added to the path."""


def load_file(
    path: str | Path,
    *,
    copy_of: str | Path | None = None,
    base: Callable[[], Experiment] | None = None,
    known: Callable[[], Experiment] | None = None,
) -> Experiment:
    """Executes an experiment file, given as its path or its name, and returns its `experiment`.

    A file may define a function `experiment(base)` instead, from the experiment of the run that
    training starts from, which `base` returns, to that of the new run. For a run that goes on, or
    is forked, `known` returns that experiment as it was.

    `copy_of` is the file that it is a copy of: where that folder still exists, `__file__` and
    modules beside the file are there. Raises InputError, naming the line, if the file is missing,
    raises, or defines no experiment, or if it needs a run and there is none.
    """
    return load_changed(path, (), copy_of=copy_of, base=base, known=known)


def load_changed(
    path: str | Path,
    changes: Changes,
    *,
    copy_of: str | Path | None = None,
    base: Callable[[], Experiment] | None = None,
    known: Callable[[], Experiment] | None = None,
    begun_with: Callable[[], Changes] = lambda: (),
) -> Experiment:
    """Executes an experiment file as `load_file`, and returns its experiment with changed values.

    `changes` are names and texts: settings (`train.steps`), and options of the file. These are the
    parameters of a function `experiment(base, task="mrpc")` that have a default; the function gets
    the value that is given. Where a `known` experiment goes on, the options must be those that it
    was `begun_with`.
    """
    experiment = _executed(path, copy_of).get("experiment")
    if not callable(experiment):
        if not isinstance(experiment, Experiment):
            raise InputError(f"{path}: defines no `experiment = Experiment(...)`")
        return apply(experiment, changes)
    options = _options(path, experiment)
    given = [(options[name], text) for name, text in changes if name in options]
    values = {option.name: option.read(text) for option, text in given}
    settings = [(name, text) for name, text in changes if name not in options]
    if known is not None:
        texts = dict(begun_with()) if given else {}
        for option, text in given:
            option.check_same(text, texts.get(option.name))
        return apply(known(), settings)
    if base is None:
        raise InputError(
            f"{path}: its experiment follows from that of a run; name one: mdlm train {path}"
            " --init-from RUN"
        )
    # How the other run was trained is not taken over.
    other = replace(base(), tune=None, stages=())
    with _named(Path(path)):
        made = experiment(other, **values)
    if not isinstance(made, Experiment):
        raise InputError(f"{path}: defines no `experiment = Experiment(...)`")
    return apply(made, settings)


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of an experiment file: a parameter of its function, with its type and default."""

    name: str
    kind: Any
    default: Any

    def read(self, text: str) -> Any:
        """Reads a value. Raises InputError, with the choices, if the text is none."""
        return from_text(text, self.kind, f"--{self.name} {text}")

    def check_same(self, text: str, there: str | None) -> None:
        """Raises InputError if the value is another than the one that a run was begun with (None:
        the default)."""
        before = self.default if there is None else self.read(there)
        if self.read(text) != before:
            raise InputError(
                f"--{self.name} {text}: the run was begun with --{self.name} {before}; begin"
                " another one, with another --out"
            )


def options_in(path: str | Path) -> list[Option]:
    """Executes an experiment file and returns its options; none if it defines no function."""
    experiment = _executed(path).get("experiment")
    return list(_options(path, experiment).values()) if callable(experiment) else []


def _options(path: str | Path, function: Callable[..., Any]) -> dict[str, Option]:
    found = {}
    settings = {field.name for field in fields(Experiment)}
    for name, parameter in inspect.signature(function).parameters.items():
        default, kind = parameter.default, parameter.annotation
        if default is parameter.empty:
            continue
        if name in settings:
            raise InputError(f"{path}: its option {name} is also a setting; name it otherwise")
        kind = type(default) if kind is parameter.empty else kind
        found[name] = Option(name=name, kind=kind, default=default)
    return found


def load_data_file(path: str | Path) -> "Experiment | DataOnly":
    """As `load_file`, but the file may define `data = TextData(...)` and no experiment."""
    space = _executed(path)
    if isinstance(space.get("experiment"), Experiment):
        return space["experiment"]
    if not isinstance(space.get("data"), TextData):
        raise InputError(
            f"{path}: defines neither `experiment = Experiment(...)` nor `data = TextData(...)`"
        )
    return DataOnly(data=space["data"])


@dataclass(frozen=True, kw_only=True)
class DataOnly:
    """The data of a file without an experiment, under the field name that an experiment has."""

    data: TextData


def function_named(name: str) -> Callable[..., Any]:
    """Returns the Python function of a name: "module:function", or that of a function in the
    experiment file, which was executed. Its module is imported, and that executes it.

    Raises InputError if there is none.
    """
    module, _, function = name.rpartition(":")
    try:
        found = getattr(importlib.import_module(module or MODULE), function, None)
    except Exception as error:
        if module:
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{name}: its module cannot be imported ({words})") from error
        found = None
    if not callable(found):
        where = f"the module {module}" if module else "the experiment file"
        raise InputError(
            f"{name}: no such function in {where}; define it there, or name another as"
            " module:function"
        )
    return found


def source_of(path: str | Path) -> str:
    """Returns the text of an experiment file, given as its path or its name.

    Raises InputError if it is missing, or cannot be decoded.
    """
    path = located(path)
    try:
        with tokenize.open(path) as file:  # UTF-8, or as the file's first lines say
            return file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error


def _executed(path: str | Path, copy_of: str | Path | None = None) -> dict[str, Any]:
    """Executes a Python file; returns the names it defines."""
    path, source = located(path), source_of(path)
    home = path if copy_of is None or not Path(copy_of).parent.is_dir() else Path(copy_of)
    module = ModuleType(MODULE)
    module.__file__ = str(home.absolute())
    _look_beside(home.absolute())
    sys.modules[MODULE] = module  # where annotations that are text are looked up
    with _named(path), old_names():
        exec(compile(source, str(path), "exec"), vars(module))
    return vars(module)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns errors of an experiment file into InputError, with the line."""
    path = located(path)
    try:
        yield
    except SyntaxError as error:
        raise InputError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{path}{where}: {type(error).__name__}: {error}") from error


def _look_beside(file: Path) -> None:
    """Lets modules beside an experiment file be imported; those of another folder no longer."""
    folder = str(file.parent)
    for old in [old for old in _folders if old != folder]:
        _folders.remove(old)
        sys.path.remove(old)
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(f"{old}/"):
                del sys.modules[name]
    if folder not in sys.path:
        sys.path.append(folder)
        _folders.append(folder)
