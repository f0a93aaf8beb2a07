"""The picture of `mdlm frontier`: perplexity against entropy, with the real text marked."""

import io
from collections.abc import Sequence
from typing import Any

from mdlm.cli.frontier_table import REAL, Row, labels_of


def picture(rows: Sequence[Row], title: str) -> bytes:
    """Returns a PNG: perplexity against entropy, a line for each setting but the temperature."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    inner, series = _series([row for row in rows if row.settings])
    for (name, own), color in zip(series.items(), _shades(len(series)), strict=True):
        _draw(axes, own, name, color=color, fmt="o-")
        for row in own:
            _say(axes, row, row.settings[inner])
    for row in (row for row in rows if not row.settings):
        _draw(axes, [row], REAL, color="black", fmt="*", markersize=13)
        for draw, measure in ((axes.axvline, "entropy"), (axes.axhline, "perplexity")):
            at: Any = row.measures[measure].value
            draw(at, color="black", linestyle=":", linewidth=0.8)
    axes.set_yscale("log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which("{x:g}")
    axes.set_xlabel("entropy of a text, nats")
    axes.set_ylabel("generative perplexity under the judge")
    shown = title.encode(errors="replace").decode()  # of a file name that is not UTF-8
    axes.set_title(shown, loc="left", fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2, which="both")
    axes.legend(frameon=False, fontsize=9, title=f"at the points: {inner}", title_fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()


def _shades(count: int) -> list[Any]:
    """Colours of lines, from light to dark."""
    from matplotlib import colormaps

    return [colormaps["viridis_r"](0.15 + 0.75 * i / max(1, count - 1)) for i in range(count)]


def _draw(axes: Any, rows: Sequence[Row], name: str, **style: Any) -> None:
    x, y = ([row.measures[n] for row in rows] for n in ("entropy", "perplexity"))
    axes.errorbar(
        [m.value for m in x],
        [m.value for m in y],
        xerr=[m.stderr or 0 for m in x],
        yerr=[m.stderr or 0 for m in y],
        label=name,
        **{"markersize": 5, "capsize": 2, "linewidth": 1.2, **style},
    )


def _say(axes: Any, row: Row, words: str) -> None:
    """Writes words beside the point of a row."""
    here: Any = tuple(row.measures[name].value for name in ("entropy", "perplexity"))
    if None not in here:
        axes.annotate(words, here, (4, 4), textcoords="offset points", fontsize=8, parse_math=False)


def _series(rows: Sequence[Row]) -> tuple[str, dict[str, list[Row]]]:
    """The setting that varies along a line, and the rows of each line by their other settings. It
    is the temperature or, if that is the same in all, the last one."""
    labels = labels_of(rows)
    varies = {name for name in labels if len({row.settings[name] for row in rows}) > 1}
    inner = "temperature" if "temperature" in varies else labels[-1]
    out: dict[str, list[Row]] = {}
    for row in rows:
        outer = [f"{name} {value}" for name, value in row.settings.items() if name != inner]
        out.setdefault(", ".join(outer) or "generated", []).append(row)
    return inner, out
