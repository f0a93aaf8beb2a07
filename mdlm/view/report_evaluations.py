"""Kept evaluations of runs side by side, by protocol, by noise level, and those of blanks."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mdlm.runs.kept import KeptRun
from mdlm.view import html
from mdlm.view.chart import Series, chart
from mdlm.view.report_curves import COLORS, EVALUATIONS, legend

BLANK = re.compile(r"blank of (\d{1,9}), (\w+): (.+)")
LEVEL = re.compile(r"times \((\d[\d.]{0,20}), (\d[\d.]{0,20})\]: (.+)")
"""Names of the lines of `mdlm blanks`, and of the levels of `mdlm eval --levels`."""


def evaluations(runs: Sequence[KeptRun]) -> str:
    """Returns a table for each protocol, a column for each run: the newest results of `mdlm eval`,
    and the last evaluations in training."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for i, run in enumerate(runs):
        for line in [*_of_training(run), *run.evaluations]:
            if not BLANK.fullmatch(line["name"]) and not LEVEL.fullmatch(line["name"]):
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


def levels(runs: Sequence[KeptRun]) -> str:
    """Returns charts of what each noise level adds to the bound, and of the loss of a token there
    (`mdlm eval --levels`), with the protocols."""
    found: dict[str, list[Series]] = {}
    said, without = [], []
    for i, run in enumerate(runs):
        lines = [(m, line) for line in run.evaluations if (m := LEVEL.fullmatch(line["name"]))]
        if not lines:
            without.append(html.missing(f"Levels of {run.name}", f"mdlm eval {run.name} --levels"))
            continue
        protocols = dict.fromkeys(line["protocol"] for _, line in lines)
        said += [f"{legend(run.name, i)}: {html.text(protocol)}" for protocol in protocols]
        for name in dict.fromkeys(match[3] for match, _ in lines):
            own = [(m, line) for m, line in lines if m[3] == name]
            own.sort(key=lambda pair: number_of(pair[0][1]))
            series = Series(
                name=run.name,
                color=i % COLORS,
                x=[(number_of(m[1]) + number_of(m[2])) / 2 for m, _ in own],
                y=[line["value"] for _, line in own],
                error=[html.real(line.get("stderr_rows")) for _, line in own],
            )
            found.setdefault(name, []).extend([series, replace(series, style="points")])
    charts = [
        chart(series, x="noise level t", y=name, zero=True, across=(0, 1))
        for name, series in found.items()
    ]
    caption = "<figcaption>Bars: standard errors over sequences.</figcaption>"
    figures = "".join(f"<figure>{drawn}{caption}</figure>" for drawn in charts if drawn)
    protocols = "".join(f'<p class="protocol">{one}</p>' for one in said)
    parts = f'<div class="charts">{figures}</div>{protocols}' if figures else ""
    return parts + "".join(without)


def number_of(text: str) -> float:
    """The number at an end of a level; 0 if it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


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
