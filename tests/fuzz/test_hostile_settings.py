"""Every setting of an experiment is given hostile values, and a run is begun with it."""

import dataclasses
from pathlib import Path

import pytest
import tiny
from hostile import NUMBERS, SMALL, TEXTS, some

from mdlm.config.field_types import options
from mdlm.config.overrides import names


def cases():
    for number, (name, kind, value) in enumerate(names(tiny.experiment(Path("text.txt")))):
        if dataclasses.is_dataclass(value):
            table = {"empty": "", "surrogate": TEXTS["surrogate"], "deep": TEXTS["deep"]}
        elif set(options(kind)) & {int, float}:
            table = {**NUMBERS, "tiny": "1e-320"}
        elif str in options(kind):
            table = TEXTS
        else:
            table = {"empty": "", "surrogate": TEXTS["surrogate"], "minus": "-1"}
        for word, text in some(table, number).items():
            yield pytest.param(name, text, id=f"{name} {word}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), list(cases()))
def test_settings(attempt, name, text):
    rest = ["--train.steps", "2"]
    attempt("train", "tiny.py", "--out", "new", *SMALL, *rest, f"--{name}={text}")
