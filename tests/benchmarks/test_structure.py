"""The figures of the package's structure: on a small package that is known, and on this one."""

import sys

import pytest

from benchmarks import structure

BASE = """
import abc


class Base(abc.ABC):
    def long(self):
        x = 0
{lines}


def short():
    return 1
"""
OWN = """
from small import base
from small.base import Base


class Own(Base): ...


class Deeper(Own, base.Base): ...
"""
OTHER = """
# Own in a comment, and
TABLE = {"own": "cli.own:Own", "text": "Own is said in passing"}
from .own import Own, Own as Again
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on the path; its modules are forgotten afterwards."""
    made = tmp_path / "small"
    made.mkdir()
    (made / "__init__.py").write_text("")
    lines = "\n".join(["        x += 1"] * structure.LONG)
    (made / "base.py").write_text(BASE.format(lines=lines))
    (made / "own.py").write_text(OWN)
    (made / "other.py").write_text(OTHER)
    monkeypatch.syspath_prepend(tmp_path)
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "small"]:
        del sys.modules[name]


def test_figures_of_a_small_package(package):
    assert structure.loose(package) == ["base", "other", "own"]
    assert structure.long_functions(package) == {"base.py: long": structure.LONG + 2}
    assert structure.class_depths("small") == {
        "small.base: Base": 1,
        "small.own: Own": 2,
        "small.own: Deeper": 3,
    }
    assert structure.mentions("Own", package / "own.py", package) == {"other.py": 2}
    assert structure.touched({"other.py": 2}) == "1 file + 2 lines in other.py"


def test_files_are_entered_by_calls_and_not_by_imports(package):
    (package / "called.py").write_text("def inner():\n    return 1\n\n\nMADE = inner()\n")

    def walk():
        import small.called
        import small.other

        assert small.called.MADE == 1
        import small.base

        small.base.short()

    assert structure.Tracer(package).run(walk) == ["base.py"]
    import small.called

    assert structure.Tracer(package).run(small.called.inner) == ["called.py"]


def test_figures_that_the_package_keeps():
    assert len(structure.loose()) <= 12
    depths = structure.class_depths()
    assert 1 < max(depths.values()) <= 3
    assert len(structure.long_functions()) <= 8
    assert structure.command_mentions() == {"cli/main.py": 1}
    assert "samplers/__init__.pyi" in structure.sampler_mentions()


@pytest.mark.slow
@pytest.mark.e2e
def test_walks_of_a_tiny_run():
    walks = structure.walks()
    sampled, loss = (set(walks[name]["entered"]) for name in list(walks)[:2])
    assert {"run/opened.py", "samplers/ancestral.py", "models/dit.py"} <= sampled
    assert {"data/loader.py", "objectives/nelbo.py", "models/dit.py"} <= loss
    assert not {"samplers/ancestral.py", "train/loop.py"} & loss
    for walk in walks.values():
        assert set(walk["entered"]) <= set(walk["imported"])
