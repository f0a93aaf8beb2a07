"""What a run folder keeps of a run, read without its parameters: for reports."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mdlm.errors import InputError
from mdlm.runs import evaluations
from mdlm.runs.folder import RunFolder
from mdlm.runs.reading import json_of

FRONTIER = "frontier/results.json"
"""The results of `mdlm frontier` in a run folder."""


class Measured(TypedDict):
    """A number about generated texts, and its standard error."""

    value: float | None
    stderr: float | None


class Setting(TypedDict):
    """The numbers of one setting of a sampler; of real text, if it has no settings."""

    texts: int
    measures: dict[str, Measured]
    settings: NotRequired[dict[str, str]]
    nfe: NotRequired[float | None]
    tokens_per_second: NotRequired[float | None]


class Frontier(TypedDict):
    """What is used of the results of `mdlm frontier`."""

    step: int
    protocol: list[str]
    rows: list[Setting]


@dataclass(frozen=True, kw_only=True)
class KeptRun:
    """The texts and numbers of a run folder.

    `settings` are the fields of its experiment, as text. `metrics` are the lines of metrics.jsonl,
    `evaluations` the newest line of each metric and protocol in evaluations.jsonl, `starts` those
    of env.json, oldest first, `samples` the newest of samples.txt under their headings, and
    `frontier` the results of `mdlm frontier`, None if there are none.
    """

    name: str
    settings: dict[str, str]
    overrides: list[tuple[str, str]]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    samples: list[tuple[str, str]]
    frontier: Frontier | None = None

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind."""
        return [line for line in self.metrics if line.get("kind") == kind]

    @cached_property
    def step(self) -> int:
        """The newest step of the log."""
        return max((line["step"] for line in self.metrics), default=0)


def read(path: str | Path, *, verify: bool = True) -> KeptRun:
    """Reads a run folder. Raises InputError if it is none, or is damaged."""
    folder = RunFolder(path, verify=verify)
    config = folder.config()
    settings = {name: str(value) for name, value in config["experiment"].items()}
    results = folder.path / FRONTIER
    return KeptRun(
        name=str(path),
        settings=settings,
        overrides=[(str(name), str(value)) for name, value in config["overrides"]],
        metrics=folder.log.metrics(),
        evaluations=list(evaluations.earlier(folder.path).values()),
        starts=folder.starts(),
        samples=_samples(folder.log.samples_file),
        frontier=json_of(results, Frontier) if results.is_file() else None,
    )


def _samples(file: Path) -> list[tuple[str, str]]:
    """Returns the heading and the text of the samples of the newest step."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    parts = re.split(r"(?m)^=== (step (\d+), sample \d+) ===\n", text)
    found = list(zip(parts[1::3], parts[2::3], parts[3::3], strict=True))
    if not found:
        return []
    return [(heading, body.rstrip("\n")) for heading, step, body in found if step == found[-1][1]]
