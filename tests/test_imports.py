"""Imports point down only: read from the syntax trees, nothing is imported."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "mdlm"

# Each layer may import itself and those that it names.
BASE = {"types", "vocab", "keys", "draws", "mesh", "hardware", "host_memory", "version"} | {
    "collectives",
    "hosts",
    "joining",
    "layout",
    "topology",
    "watch",
}
NOISE = {"schedules", "md4_schedules", "per_token_schedules", "change_of_variables", "times"}
PARTS = {"processes", "parameterizations"}
METHODS = {"objectives", "samplers"}
OUTSIDE = {"data", "models"}
EXPERIMENT = {"experiment", "identity", "overrides", "optim", "generation"}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    **dict.fromkeys(NOISE, BASE | NOISE),
    **dict.fromkeys(PARTS, BASE | NOISE | PARTS),
    "objectives": BASE | NOISE | PARTS | {"objectives"},
    "samplers": BASE | NOISE | PARTS | {"samplers"},
    "data": BASE | {"data"},
    "models": BASE | {"models"},
    "interop": BASE | {"models", "interop"},
    "optim": BASE,
    "evals": BASE | NOISE | PARTS | METHODS | {"evals"},
    "overrides": BASE,
    "experiment": BASE | NOISE | PARTS | METHODS | OUTSIDE | {"evals", "optim", "experiment"},
    "identity": {"experiment", "identity"},
    "generation": BASE | METHODS | OUTSIDE | {"experiment"},
    "train": BASE | NOISE | PARTS | METHODS | OUTSIDE | EXPERIMENT | {"evals", "interop", "train"},
    "progress": BASE | {"train"},
    "view": BASE | {"samplers", "view"},
    "run": BASE | METHODS | OUTSIDE | EXPERIMENT | {"evals", "train"},
    "footprint": BASE | {"experiment", "models", "train"},
    "plan": BASE | {"collectives", "experiment", "footprint", "models", "topology", "train"},
    "plan_commands": BASE | {"data", "experiment", "overrides", "plan", "topology"},
    "aborts": BASE,
    "joining": BASE | {"aborts"},
    "arguments": BASE,
    "sampling_commands": BASE | {"samplers", "data", "progress", "run", "view"},
    "data_commands": BASE | {"data", "experiment", "overrides", "progress"},
    "tokenizer_commands": BASE | {"data", "experiment", "overrides", "progress"},
    "cli": BASE
    | {"arguments", "data_commands", "plan_commands", "sampling_commands", "tokenizer_commands"}
    | {"joining"}
    | OUTSIDE
    | EXPERIMENT
    | {"evals", "train", "progress", "run"},
    "__main__": {"cli"},
    "__init__": {"version", "run"},
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
        assert layer in MAY_IMPORT, f"mdlm/{layer} has no place among the layers yet"
        for name in sorted(imported(path) - MAY_IMPORT[layer]):
            wrong.append(f"{path.relative_to(ROOT)} imports mdlm.{name}")
    assert not wrong, "\n".join(wrong)


def test_only_the_upper_layers_touch_disk():
    """`open`, `read_text` and the like appear only where files are someone's business."""
    allowed = {"data", "train", "interop", "cli", "sampling_commands", "experiment"}
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
