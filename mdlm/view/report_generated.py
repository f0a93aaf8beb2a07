"""Generated text of runs: quality against diversity, and the numbers (`mdlm frontier`)."""

from collections.abc import Sequence

from mdlm.runs.kept import Frontier, KeptRun, Setting
from mdlm.view import html
from mdlm.view.chart import Series, chart, padded
from mdlm.view.report_curves import COLORS, legend

REAL = "real text"


def generated(runs: Sequence[KeptRun]) -> str:
    """Returns the picture of all runs, and a table for each."""
    series, tables, without = [], [], []
    for i, run in enumerate(runs):
        if run.frontier is None:
            without.append(html.missing(f"Texts of {run.name}", f"mdlm frontier {run.name}"))
            continue
        series += [_point(run.name, row, i) for row in run.frontier["rows"]]
        tables.append(f"<h3>{legend(run.name, i)}</h3>{_table(run.frontier)}")
    at = [x for one in series for x, _, _ in one.points]
    across = padded(min(at), max(at)) if at else None
    drawn = chart(series, x="entropy", y="perplexity under the judge", across=across)
    caption = (
        "Perplexity under a judge against entropy: texts that repeat themselves have little of "
        "both. Grey: real text. Bars: standard errors over the texts."
    )
    figure = f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>" if drawn else ""
    parts = [f'<div class="charts">{figure}</div>' if figure else "", *tables, *without]
    return "".join(parts)


def _point(name: str, row: Setting, number: int) -> Series:
    measures = row["measures"]
    entropy, perplexity = (measures.get(n) for n in ("entropy", "perplexity"))
    return Series(
        name=f"{name}, {_label(row)}",
        color=number % COLORS if row.get("settings") else "real",
        x=[None if entropy is None else entropy["value"]],
        y=[None if perplexity is None else perplexity["value"]],
        error=[None if perplexity is None else perplexity["stderr"]],
        style="points",
    )


def _label(row: Setting) -> str:
    return ", ".join(f"{n} {value}" for n, value in row.get("settings", {}).items()) or REAL


def _table(found: Frontier) -> str:
    rows = found["rows"]
    names = dict.fromkeys(name for row in rows for name in row["measures"])
    known = [n for n in names if any(_value(row, n) is not None for row in rows)]
    lines = []
    for row in rows:
        cells = [f"<td>{html.text(_label(row))}</td>"]
        for name in known:
            measure = row["measures"].get(name)
            is_known = measure is not None and measure["value"] is not None
            cells.append(
                html.number(measure["value"], ("", measure["stderr"]), digits=3)
                if measure is not None and is_known
                else "<td></td>"
            )
        for cost in (row.get("nfe"), row.get("tokens_per_second")):
            cells.append("<td></td>" if cost is None else html.number(cost, digits=0))
        lines.append("".join(cells))
    said = "".join(
        html.text(line) + "<br>" for line in [f"step {found['step']}", *found["protocol"]]
    )
    heads = ["setting", *map(html.text, known), "NFE", "tokens/s"]
    return f'<p class="protocol">{said}</p>' + html.table(heads, lines, numbers=True)


def _value(row: Setting, name: str) -> float | None:
    measure = row["measures"].get(name)
    return None if measure is None else measure["value"]
