"""Every package that mdlm imports is declared in pyproject.toml, and no other."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {"PIL": "pillow", "orbax": "orbax-checkpoint", "torch": "torch"}
"""Packages that are imported under another name than they are installed under."""


def requirements(lines: list[str]) -> dict[str, str]:
    """Versions by name, in lower case and with dashes, as packages are compared."""
    found = {}
    for line in lines:
        name, versions = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(.*)", line).groups()
        found[name.lower().replace("_", "-")] = versions
    return found


DECLARED = requirements(PROJECT["dependencies"])
EXTRAS = requirements(
    [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
)


def imported() -> dict[str, str]:
    """The other packages that the package and its experiments import, each with a place."""
    found = {}
    for path in [*(ROOT / "mdlm").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "mdlm":
                    package = NAMES.get(top, top).lower().replace("_", "-")
                    found[package] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def test_every_import_is_declared():
    missing = imported().keys() - DECLARED.keys() - EXTRAS.keys()
    assert not missing, {name: imported()[name] for name in missing}


def test_every_dependency_is_imported():
    assert not DECLARED.keys() - imported().keys()


@pytest.mark.parametrize("name, versions", DECLARED.items())
def test_a_dependency_says_the_oldest_version_that_works(name, versions):
    assert versions.startswith(">="), f"{name}{versions}"


def test_announced_breaks_are_excluded():
    """Orbax announces that version 1 removes the interface that checkpoints use."""
    assert "<1" in DECLARED["orbax-checkpoint"].split(",")
