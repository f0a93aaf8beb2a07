"""The results of `mdlm eval`, kept in the run folder.

Each line of evaluations.jsonl has the fields of a metric (`evals.nll.Metric`), a date, step and
versions.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from mdlm.files import append, check_contained, finite
from mdlm.foreign.typed_json import decoded
from mdlm.version import __version__

FILE = "evaluations.jsonl"


def record(folder: Path, step: int, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Appends metrics to the file. Raises OSError if the folder cannot be written to."""
    check_contained(folder)
    common = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "versions": {"mdlm": __version__, "jax": metadata.version("jax")},
    }
    lines = [json.dumps(finite({**metric, **common})) + "\n" for metric in metrics]
    append(folder / FILE, "".join(lines).encode())


class Kept(TypedDict):
    """What is used of a line."""

    name: str
    protocol: str
    step: int
    value: float | None  # None: not finite
    stderr: float | None
    date: str


def earlier(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the newest line of each metric and protocol, without lines that cannot be read."""
    path, found = folder / FILE, {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            values = decoded(line, Kept)
            found[values["name"], values["protocol"]] = {**decoded(line), **values}
    return found


def beside(folder: Path, step: int, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line for each metric that was evaluated before, to print beside the new value."""
    out, known = [], earlier(folder)
    for metric in metrics:
        old = known.get((metric["name"], metric["protocol"]))
        if old is not None:
            at = "" if old["step"] == step else f", step {old['step']}"
            value = "not finite" if old["value"] is None else f"{old['value']:.4f}"
            noise = "" if old["stderr"] is None else f" +- {old['stderr']:.4f}"
            out.append(f"{metric['name']}: {value}{noise} on {old['date'][:10]}{at}")
    return out
