"""Experiments and documents import from the faces of the package, so that files below may move."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FACES = {
    "mdlm",
    *(f"mdlm.{path.parent.name}" for path in (ROOT / "mdlm").glob("*/__init__.pyi")),
    "mdlm.optim",
    "mdlm.times",
}
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "experiments").rglob("*.md"),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
STATEMENT = re.compile(r"\b(?:from (mdlm[\w.]*) import|import (mdlm[\w.]*))")


def imports(source: str) -> list[tuple[str, list[str]]]:
    """Modules of mdlm that a text of Python imports, with the names it takes from each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mdlm":
            found.append((node.module, [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found += [(a.name, []) for a in node.names if a.name.partition(".")[0] == "mdlm"]
    return found


def test_the_faces_are_there():
    assert {"mdlm.models", "mdlm.samplers", "mdlm.experiment", "mdlm.data"} <= FACES
    assert len(FACES) >= 12


@pytest.mark.parametrize("face", sorted(FACES - {"mdlm"}))
def test_a_face_has_what_it_names(face):
    module = importlib.import_module(face)
    assert all(getattr(module, name) is not None for name in getattr(module, "__all__", []))


def test_experiments_import_from_faces():
    wrong = []
    for path in EXPERIMENTS:
        for module, names in imports(path.read_text()):
            if module not in FACES:
                wrong.append(f"{path.relative_to(ROOT)}: from {module} import {', '.join(names)}")
    assert EXPERIMENTS and not wrong, "\n".join(wrong)


def test_documents_import_from_faces():
    """In blocks of Python whole statements, elsewhere whatever reads like one."""
    wrong, blocks = [], 0
    for path in DOCUMENTS:
        text = path.read_text()
        for block in BLOCK.findall(text):
            blocks += 1
            wrong += [(path.name, m) for m, _ in imports(block) if m not in FACES]
        for found in STATEMENT.finditer(text):
            module = (found[1] or found[2]).rstrip(".")
            # `mdlm import mdlm.safetensors` is a command.
            if module not in FACES and module != "mdlm.safetensors":
                wrong.append((path.name, module))
    assert blocks and not wrong, wrong
