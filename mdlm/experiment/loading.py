"""Executes experiment files.

An experiment file is Python that defines `experiment = Experiment(...)`. Execute one only from
people you would run code from.
"""

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdlm.data.dataset import TextData
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.old_names import old_names
from mdlm.experiment.shipped import located


def load_file(path: str | Path) -> Experiment:
    """Executes an experiment file, given as its path or its name, and returns its `experiment`.

    Raises InputError, naming the line, if the file is missing, raises, or defines no experiment.
    """
    experiment = _executed(path).get("experiment")
    if not isinstance(experiment, Experiment):
        raise InputError(f"{path}: defines no `experiment = Experiment(...)`")
    return experiment


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


def _executed(path: str | Path) -> dict[str, Any]:
    """Executes a Python file; returns the names it defines."""
    path = located(path)
    space: dict[str, Any] = {"__name__": "mdlm_experiment", "__file__": str(path)}
    try:
        with old_names():
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{path}{where}: {type(error).__name__}: {error}") from error
    return space
