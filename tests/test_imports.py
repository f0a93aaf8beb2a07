"""Imports point down only: read from the syntax trees, nothing is imported."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "mdlm"

BASE = {"types", "errors", "foreign", "files", "vocab", "keys", "draws", "version", "names"}
DEVICES = {"cluster", "parallel", "profiling"}
NOISE = {"schedules", "times"}
METHODS = {"processes", "parameterizations", "diffusion", "objectives", "samplers"}
COMPONENTS = NOISE | METHODS | {"data", "models", "optim", "tuning", "config"}

# Each folder, or file of the top, may import itself, BASE, and those that it names.
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(BASE, BASE),
    "cluster": set(),
    "profiling": {"cluster"},
    "parallel": {"cluster", "profiling"},
    "config": set(),
    "schedules": DEVICES,
    "times": DEVICES,
    "processes": DEVICES | NOISE | {"parameterizations"},
    "parameterizations": DEVICES | NOISE | {"processes"},
    "diffusion": {"processes", "parameterizations"},
    "objectives": DEVICES | NOISE | {"processes", "parameterizations", "diffusion"},
    "samplers": DEVICES | NOISE | {"processes", "parameterizations", "diffusion"},
    "data": DEVICES | {"config"},
    "models": DEVICES,
    "optim": DEVICES,
    "tuning": {"config"},
    "experiment": DEVICES | COMPONENTS,
    "evals": DEVICES | COMPONENTS | {"experiment"},
    "generation": DEVICES | METHODS | {"config", "data", "models", "experiment"},
    "runs": DEVICES | {"config", "experiment", "tuning"},
    "train": DEVICES | COMPONENTS | {"experiment", "evals", "generation", "runs"},
    "interop": DEVICES | COMPONENTS | {"experiment", "evals", "generation", "runs", "run"},
    "planning": DEVICES | {"data", "diffusion", "experiment", "models", "train"},
    "view": {"generation", "runs", "evals"},
    "run": DEVICES | COMPONENTS | {"experiment", "evals", "generation", "runs"},
    "cli": DEVICES
    | COMPONENTS
    | {"experiment", "evals", "generation", "runs", "train", "interop", "planning", "view", "run"},
    "__main__": {"cli"},
    "__init__": {"run", "train"},
}


def imported(path: Path) -> set[str]:
    """First parts below `mdlm` of everything a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mdlm":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == "mdlm" and len(name) > 1}
    return found


def test_imports_point_down():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert layer in MAY_IMPORT, f"mdlm/{layer} has no row in the import rule yet"
        for name in sorted(imported(path) - MAY_IMPORT[layer] - BASE - {layer}):
            wrong.append(f"{path.relative_to(ROOT)} imports mdlm.{name}")
    assert not wrong, "\n".join(wrong)


def test_only_the_upper_layers_touch_disk():
    """`open`, `read_text` and the like appear only where files are someone's business."""
    allowed = {"files", "data", "runs", "interop", "cli", "experiment", "profiling"}
    touching = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "mkdir"}
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0].removesuffix(".py") in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in touching:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {name}")
    assert not wrong, "\n".join(wrong)


def test_only_tests_of_benchmarks_import_them():
    tests = ROOT.parent / "tests"
    found = {
        str(path.relative_to(tests))
        for path in tests.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if name.split(".")[0] == "benchmarks"
    }
    assert found and all(name.startswith("benchmarks/") for name in found), found
