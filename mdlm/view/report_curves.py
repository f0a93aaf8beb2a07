"""Curves of runs: loss, learning rate, speed and loss by noise level over training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mdlm.runs.curves import smooth
from mdlm.runs.kept import KeptRun
from mdlm.view import html
from mdlm.view.chart import Number, Series, Style, chart

EVALUATIONS = {"valid": "validation", "test": "test split", "train split": "training split"}
"""Kinds of lines of metrics.jsonl that are evaluations, and what they are called."""
COLORS = 6


def legend(name: str, number: int) -> str:
    """Returns the name of a run with its colour."""
    return f'<span class="swatch s{number % COLORS}"></span>{html.text(name)}'


def curves(runs: Sequence[KeptRun]) -> str:
    """Returns the charts, with a legend; a line for runs without a log."""
    figures = [
        _figure(_loss(runs), "step", "nats per token", LOSS),
        _figure(_by_time(runs), "noise level t", "nats per token", BY_TIME, zero=True),
        _figure(_over_steps(runs, "learning_rate"), "step", "learning rate", "", zero=True),
        _figure(_over_steps(runs, "tokens_per_second"), "step", "tokens/s", "", zero=True),
    ]
    names = "".join(f"<span>{legend(run.name, i)}</span>" for i, run in enumerate(runs))
    empty = "".join(
        html.missing(f"Curves of {run.name}", "mdlm train") for run in runs if not run.metrics
    )
    charts = f'<nav>{names}</nav><div class="charts">{"".join(figures)}</div>'
    return empty + (charts if any(figures) else "")


LOSS = (
    "Lines: training batches, and their running mean. Points: evaluations of EMA parameters, with "
    "the standard error over sequences."
)
BY_TIME = "Training loss by noise level, mean over the last fifth of the log (dashed: the first)."


def _figure(series: list[Series], x: str, y: str, caption: str, zero: bool = False) -> str:
    drawn = chart(series, x=x, y=y, zero=zero)
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>" if drawn else ""


def _numbers(lines: Sequence[dict[str, Any]], name: str) -> list[Number]:
    """The values of a name; what is no number is left out."""
    return [html.real(line.get(name)) for line in lines]


def _loss(runs: Sequence[KeptRun]) -> list[Series]:
    faint, lines, points = [], [], []
    for i, run in enumerate(runs):
        train, color = run.lines("train"), i % COLORS
        found = [
            (x, y)
            for x, y in zip(_numbers(train, "step"), _numbers(train, "nelbo"), strict=True)
            if x is not None and y is not None
        ]
        if found:
            x, y = map(list, zip(*found, strict=True))
            faint.append(Series(name=run.name, color=color, x=x, y=y, style="faint"))
            running = smooth(np.array(y)).tolist()
            lines.append(Series(name=run.name, color=color, x=x, y=running))
        for kind, word in EVALUATIONS.items():
            some = run.lines(kind)
            points.append(
                Series(
                    name=f"{run.name}, {word}",
                    color=color,
                    x=_numbers(some, "step"),
                    y=_numbers(some, "nats per token"),
                    error=_numbers(some, "nats per token stderr_rows"),
                    style="points",
                )
            )
    return [*faint, *lines, *points]


def _over_steps(runs: Sequence[KeptRun], name: str) -> list[Series]:
    train = [run.lines("train") for run in runs]
    return [
        Series(
            name=run.name,
            color=i % COLORS,
            x=_numbers(lines, "step"),
            y=_numbers(lines, name),
        )
        for i, (run, lines) in enumerate(zip(runs, train, strict=True))
    ]


def _by_time(runs: Sequence[KeptRun]) -> list[Series]:
    """Means over the first and the last fifth of the lines, each level as a flat piece."""
    found = []
    for i, run in enumerate(runs):
        rows = [line.get("loss_by_time") for line in run.lines("train")]
        rows = [row for row in rows if isinstance(row, list) and row]
        rows = [row for row in rows if len(row) == len(rows[-1])]
        if not rows:
            continue
        few, n = max(1, len(rows) // 5), len(rows[-1])
        edges = [edge / n for k in range(n) for edge in (k, k + 1)]
        parts: dict[Style, list] = {"dashed": rows[:few], "line": rows[-few:]}
        for style, part in parts.items():
            y = [mean for k in range(n) for mean in [_mean([row[k] for row in part])] * 2]
            found.append(Series(name=run.name, color=i % COLORS, x=edges, y=y, style=style))
    return found


def _mean(values: Sequence[Any]) -> Number:
    met = [v for v in values if isinstance(v, (int, float)) and np.isfinite(v)]
    return sum(met) / len(met) if met else None
