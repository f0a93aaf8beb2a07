"""Options of experiment files: parameters of a function with a default."""

import pytest
import tiny

from mdlm.cli.arguments import experiment_from
from mdlm.errors import InputError
from mdlm.experiment import load_file
from mdlm.experiment.loading import load_changed, options_in

FILE = """
from dataclasses import replace
from typing import Literal

def experiment(base, kind: Literal["short", "long"] = "short", times=2, rate: float = 0.5):
    steps = {{"short": 10, "long": 100}}[kind] * times
    return replace(
        base,
        name=f"{{kind}}_{{rate}}",
        train=replace(base.train, steps=steps),
    )
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "follows.py"
    path.write_text(FILE.format(), encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path):
    return tiny.experiment(tmp_path / "text.txt")


def changed(file, base, *changes, **how):
    return load_changed(file, changes, base=lambda: base, **how)


def test_options_are_handed_to_the_function(file, base):
    assert load_file(file, base=lambda: base).train.steps == 20
    made = changed(file, base, ("kind", "long"), ("train.batch_size", "4"), ("times", "3"))
    assert (made.name, made.train.steps, made.train.batch_size) == ("long_0.5", 300, 4)
    # A setting has the last word.
    assert changed(file, base, ("train.steps", "7"), ("kind", "long")).train.steps == 7
    assert changed(file, base, ("rate", "1e-3")).name == "short_0.001"


def test_options_are_listed(file, tmp_path):
    found = options_in(file)
    assert [(o.name, o.default) for o in found] == [("kind", "short"), ("times", 2), ("rate", 0.5)]
    (tmp_path / "plain.py").write_text(tiny.FILE.format(text="text.txt"), encoding="utf-8")
    assert options_in(tmp_path / "plain.py") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("kind", "medium"),
            "^--kind medium: expected one of short, long$",
        ),
        (("times", "two"), "^--times two: expected a whole number"),
        (("sort", "long"), "^--sort: the experiment has no such setting"),
    ],
)
def test_wrong_values_are_refused_in_a_line(file, base, change, message):
    with pytest.raises(InputError, match=message) as error:
        changed(file, base, change)
    assert "\n" not in str(error.value)


def test_a_run_that_goes_on_keeps_its_options(file, base):
    """They are in its experiment; given again they must be the same."""
    begun = changed(file, base, ("kind", "long"))
    how = dict(known=lambda: begun, begun_with=lambda: [("kind", "long"), ("train.steps", "9")])
    assert changed(file, base, **how) == begun
    assert changed(file, base, ("kind", "long"), ("times", "2"), **how) == begun
    assert changed(file, base, ("train.steps", "9"), **how).train.steps == 9
    for name, text, there in (("kind", "short", "long"), ("times", "4", "2")):
        message = f"^--{name} {text}: the run was begun with --{name} {there}; begin another"
        with pytest.raises(InputError, match=message):
            changed(file, base, (name, text), **how)


def test_an_option_is_no_setting(tmp_path, base):
    path = tmp_path / "clash.py"
    path.write_text("def experiment(base, seed=1):\n    return base\n", encoding="utf-8")
    with pytest.raises(InputError, match="its option seed is also a setting; name it otherwise"):
        changed(path, base)


def test_a_file_without_a_function_has_none(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(tiny.FILE.format(text="text.txt"), encoding="utf-8")
    with pytest.raises(InputError, match="--kind: the experiment has no such setting"):
        experiment_from(str(path), [("kind", "long")])
