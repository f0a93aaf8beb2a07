"""A table of run folders: how far each is, what it reached, and what differs between them."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdlm.runs.kept import KeptRun

NAME = "nats per token"
DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A run in the table. `value` is its newest NLL in nats per token, with the standard error over
    sequences and the protocol; `tokens_per_second` the newest of training. None: not known."""

    name: str
    experiment: str
    step: int
    started: str
    value: float | None
    stderr: float | None
    protocol: str | None
    tokens_per_second: float | None
    differs: dict[str, str]


def folders_in(path: Path) -> list[Path]:
    """The run folders in a folder, itself or those below it, by name."""
    if (path / "config.json").is_file():
        return [path]
    return sorted(file.parent for file in path.glob("*/config.json"))


def listed(runs: Sequence[KeptRun]) -> list[Listed]:
    """Returns the rows of the table, in the order of `runs`."""
    apart = differences([run.settings for run in runs])
    return [_row(run, differs) for run, differs in zip(runs, apart, strict=True)]


def _row(run: KeptRun, differs: dict[str, str]) -> Listed:
    told = [line for line in run.lines("valid") if _number(line.get(NAME)) is not None]
    kept = [one for one in run.evaluations if one.get("name") == NAME]
    newest: dict[str, Any] = {}
    if told:
        last = told[-1]
        newest = {
            "value": last[NAME],
            "stderr": last.get(f"{NAME} stderr_rows"),
            "protocol": last.get("protocol"),
        }
    elif kept:
        last = max(kept, key=lambda one: (one.get("step", 0), str(one.get("date"))))
        newest = {key: last.get(key) for key in ("value", "protocol")}
        newest["stderr"] = last.get("stderr_rows")
    speeds = [_number(line.get("tokens_per_second")) for line in run.lines("train")]
    protocol = newest.get("protocol")
    return Listed(
        name=run.name,
        experiment=run.settings.get("name", "").strip("'"),
        step=max([run.step, *(int(_number(e.get("step")) or 0) for e in run.evaluations)]),
        started=str(run.starts[-1].get("started", ""))[:10] if run.starts else "",
        value=_number(newest.get("value")),
        stderr=_number(newest.get("stderr")),
        protocol=None if protocol is None else str(protocol),
        tokens_per_second=next((speed for speed in reversed(speeds) if speed is not None), None),
        differs=differs,
    )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def differences(settings: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Returns, for each experiment, the settings in which not all of them agree, by dotted name.

    Where the components differ in kind, all of the text stands under the component's name. A
    setting that an experiment does not record has its default value.
    """
    parts = [_fields(one) for one in settings]
    names = list(dict.fromkeys(name for part in parts for name in part))
    found: list[dict[str, str]] = [{} for _ in parts]
    whole: list[str] = []
    for name in names:
        texts = [part.get(name, ("", DEFAULT)) for part in parts]
        if name == "name" or any(name.startswith(f"{above}.") for above in whole):
            continue
        if len({kind for kind, _ in texts}) > 1:
            whole.append(name)
            values = [text for _, text in texts]
        elif not texts[0][0]:
            values = [text for _, text in texts]
        else:  # the same component: its fields are compared one by one
            continue
        if len(set(values)) > 1:
            for one, value in zip(found, values, strict=True):
                one[name] = value
    return found


def _fields(settings: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Returns the kind of component and the text of each setting, by dotted name, outer ones
    first; values that are no component have the kind ""."""
    found: dict[str, tuple[str, str]] = {}

    def add(name: str, node: ast.expr) -> None:
        text = ast.unparse(node)
        if not isinstance(node, ast.Call):
            found[name] = ("", text)
            return
        found[name] = (ast.unparse(node.func), text)
        for word in node.keywords:
            add(f"{name}.{word.arg}", word.value)

    for name, text in settings.items():
        try:
            add(name, ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError):
            found[name] = ("", text)
    return found
