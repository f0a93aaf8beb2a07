"""What each day's run of the tests holds: see `--part` in conftest.py."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
from parts import part_of

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    nodeid: str
    is_slow: bool

    def get_closest_marker(self, name):
        return self.is_slow and name == "slow" or None


def cases(quick, slow):
    kinds = [False] * quick + [True] * slow
    return [Case(f"t.py::test[{i}]", is_slow) for i, is_slow in enumerate(kinds)]


@pytest.mark.parametrize(("quick", "slow"), [(1, 0), (0, 1), (5, 0), (30, 0), (0, 5), (1, 3)])
def test_parts_are_all_cases_and_each_has_a_quick_one(quick, slow):
    own = cases(quick, slow)
    parts = [part_of(own, k, 12) for k in range(12)]
    assert {case for part in parts for case in part} == set(own)
    for part in parts:
        assert len(part) == len(set(part))
        assert not quick or any(not case.is_slow for case in part)
    if slow > 1 and not quick:
        assert all(parts)  # one of several slow cases at least


def is_slow(node: ast.AST) -> bool:
    """Whether decorators, or an assigned `pytestmark`, mark the whole as slow."""
    marks = getattr(node, "decorator_list", None) or [getattr(node, "value", node)]
    return any(
        ast.unparse(mark).startswith(("pytest.mark.slow", "[pytest.mark.slow")) for mark in marks
    )


@pytest.mark.parametrize("folder", ["samplers", "objectives", "exact"])
def test_every_sampler_and_objective_is_tested_each_day(folder):
    """No file of these folders is wholly slow, and most tests of each are not."""
    files = sorted((TESTS / folder).rglob("test_*.py"))
    assert len(files) >= 8
    for path in files:
        body = ast.parse(path.read_text()).body
        marks = [n for n in body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)]
        assert not any(map(is_slow, marks)), f"{path.name} is wholly slow"
        tests = [n for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        slow = [test.name for test in tests if is_slow(test)]
        assert len(slow) < len(tests) / 2, f"{path.name}: {slow}"
