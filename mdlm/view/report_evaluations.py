"""Kept evaluations of runs side by side, by protocol, and those of blanks."""

import re
from collections.abc import Sequence
from typing import Any

from mdlm.runs.kept import KeptRun
from mdlm.view import html
from mdlm.view.report_curves import EVALUATIONS, legend

BLANK = re.compile(r"blank of (\d+), (\w+): (.+)")


def evaluations(runs: Sequence[KeptRun]) -> str:
    """Returns a table for each protocol, a column for each run: the newest results of `mdlm eval`,
    and the last evaluations in training."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for i, run in enumerate(runs):
        for line in [*_of_training(run), *run.evaluations]:
            if not BLANK.fullmatch(line["name"]):
                found.setdefault(line["protocol"], {}).setdefault(line["name"], {})[i] = line
    without = [run.name for i, run in enumerate(runs) if not _has(found, i)]
    parts = [_table(protocol, names, runs) for protocol, names in found.items()]
    note = (
        '<p class="faint">&plusmn; noise: standard error of what was drawn; sequences: over the '
        "rows of the split. Numbers of different protocols are not comparable.</p>"
    )
    more = [html.missing(f"Evaluations of {name}", f"mdlm eval {name}") for name in without]
    return (note if parts else "") + "".join([*parts, *more])


def _has(found: dict[str, dict[str, dict[int, Any]]], run: int) -> bool:
    return any(run in of for names in found.values() for of in names.values())


def _of_training(run: KeptRun) -> list[dict[str, Any]]:
    """The last evaluation of each kind in the log, as lines of evaluations."""
    found = []
    for kind in EVALUATIONS:
        line = (run.lines(kind) or [{}])[-1]
        for name in ("nats per token", "bits per byte", "perplexity"):
            if name in line and isinstance(line.get("protocol"), str):
                found.append(
                    {
                        "name": name,
                        "protocol": line["protocol"],
                        "value": line[name],
                        "stderr": line.get(f"{name} stderr"),
                        "stderr_rows": line.get(f"{name} stderr_rows"),
                        "step": line["step"],
                        "date": "in training",
                    }
                )
    return found


def _table(
    protocol: str, names: dict[str, dict[int, dict[str, Any]]], runs: Sequence[KeptRun]
) -> str:
    shown = sorted({i for of in names.values() for i in of})
    rows = []
    for name, of in names.items():
        cells = "".join(_value(of.get(i)) for i in shown)
        rows.append(f"<td>{html.text(name)}</td>{cells}")
    when = [next(of[i] for of in names.values() if i in of) for i in shown]
    rows.append(
        "<td>step, date</td>"
        + "".join(f'<td class="number"><i>{_when(line)}</i></td>' for line in when)
    )
    heads = ["", *(legend(runs[i].name, i) for i in shown)]
    return f'<p class="protocol">{html.text(protocol)}</p>' + html.table(heads, rows, numbers=True)


def _when(line: dict[str, Any]) -> str:
    return f"{line['step']:,}, {html.text(line['date'][:16])}"


def _value(line: dict[str, Any] | None) -> str:
    if line is None:
        return "<td></td>"
    errors = ("noise", line["stderr"]), ("sequences", line.get("stderr_rows"))
    return html.number(line["value"], *errors, digits=2 if line["name"] == "perplexity" else 4)


def blanks(runs: Sequence[KeptRun]) -> str:
    """Returns a table of the blanks of each run (`mdlm blanks`)."""
    parts = []
    for i, run in enumerate(runs):
        cells: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
        for line in run.evaluations:
            if (match := BLANK.fullmatch(line["name"])) is not None:
                cells.setdefault((int(match[1]), match[2]), {})[match[3]] = line
        if cells:
            parts.append(f"<h3>{legend(run.name, i)}</h3>{_blanks(cells)}")
        else:
            parts.append(html.missing(f"Blanks of {run.name}", f"mdlm blanks {run.name}"))
    return "".join(parts)


def _blanks(cells: dict[tuple[int, str], dict[str, dict[str, Any]]]) -> str:
    names = list(dict.fromkeys(name for of in cells.values() for name in of))
    protocols = dict.fromkeys(line["protocol"] for of in cells.values() for line in of.values())
    rows = []
    for (tokens, at), of in cells.items():
        values = (of.get(name) for name in names)
        rows.append(
            f"<td>{tokens}, {html.text(at)}</td>"
            + "".join(
                "<td></td>"
                if line is None
                else html.number(line["value"], ("", line.get("stderr_rows")), digits=3)
                for line in values
            )
        )
    said = "".join(f'<p class="protocol">{html.text(protocol)}</p>' for protocol in protocols)
    heads = ["tokens, place", *map(html.text, names)]
    return said + html.table(heads, rows, numbers=True)
