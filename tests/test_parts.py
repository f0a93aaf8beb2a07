"""What each day's run of the tests holds: see `--part` in conftest.py."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
from parts import DAILY, DAYS, part_of

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    nodeid: str
    is_slow: bool

    def get_closest_marker(self, name):
        return self.is_slow and name == "slow" or None


def cases(quick, slow, file):
    kinds = [False] * quick + [True] * slow
    return [Case(f"{file}::test[{i}]", is_slow) for i, is_slow in enumerate(kinds)]


@pytest.mark.parametrize(("quick", "slow"), [(1, 0), (0, 1), (5, 0), (50, 0), (0, 5), (1, 3)])
@pytest.mark.parametrize(
    ("file", "is_first", "days"),
    [
        ("tests/samplers/logits/t.py", True, DAYS),
        ("tests/samplers/t.py", False, 1),
        ("tests/data/t.py", True, 1),
        ("tests/t.py", False, DAYS),
    ],
)
def test_parts_are_all_cases(quick, slow, file, is_first, days):
    own = cases(quick, slow, file)
    parts = [part_of(own, k, 36, is_first) for k in range(36)]
    assert {case for part in parts for case in part} == set(own)
    for k, part in enumerate(parts):
        assert len(part) == len(set(part))
        some = [any(not case.is_slow for case in parts[(k + day) % 36]) for day in range(DAYS)]
        assert sum(some) == (days if quick else 0)


def test_one_part_of_one_is_everything():
    own = cases(4, 3, "tests/data/t.py")
    assert set(part_of(own, 0, 1)) == set(own)


def is_slow(node: ast.AST) -> bool:
    """Whether decorators, or an assigned `pytestmark`, mark the whole as slow."""
    marks = getattr(node, "decorator_list", None) or [getattr(node, "value", node)]
    return any(
        ast.unparse(mark).startswith(("pytest.mark.slow", "[pytest.mark.slow")) for mark in marks
    )


@pytest.mark.parametrize("folder", DAILY)
def test_every_sampler_and_objective_is_tested_each_day(folder):
    """No file of these folders is wholly slow, nor is its first test, and most tests are not."""
    files = sorted((TESTS / folder).rglob("test_*.py"))
    assert len(files) >= 8
    for path in files:
        body = ast.parse(path.read_text()).body
        marks = [n for n in body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)]
        assert not any(map(is_slow, marks)), f"{path.name} is wholly slow"
        tests = [n for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        slow = [test.name for test in tests if is_slow(test)]
        assert not is_slow(tests[0]), f"{path.name}: {tests[0].name} is the first"
        assert len(slow) < len(tests) / 2, f"{path.name}: {slow}"


def test_each_hostile_case_is_in_one_part():
    """Tests of many cases in tests/fuzz are slow, and slow cases are run once in all parts."""
    files = sorted((TESTS / "fuzz").glob("test_*.py"))
    tests = [n for path in files for n in ast.parse(path.read_text()).body]
    many = [
        test
        for test in tests
        if isinstance(test, ast.FunctionDef) and "parametrize" in ast.unparse(test.decorator_list)
    ]
    assert len(files) == 4 and len(many) >= 5 and all(map(is_slow, many))
    days = [len(part_of(cases(0, 900, "tests/fuzz/t.py"), k, 36)) for k in range(36)]
    assert sum(days) == 900 and 10 < min(days) and max(days) < 45
