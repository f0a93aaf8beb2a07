"""A picture of a bound by noise level."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlm.evals.levels import Level, Ratio
from mdlm.runs.curves import BLUE, ORANGE


def draw(levels: Sequence[Level], path: Path, *, title: str) -> None:
    """Plots into `path` what each level adds to the bound, and the cross-entropy of its tokens.

    Whiskers are standard errors over sequences.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_entropy = any(one.cross_entropy is not None for one in levels)
    figure = Figure(figsize=(9, 4.2) if has_entropy else (5.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    parts = np.atleast_1d(figure.subplots(1, 2 if has_entropy else 1))
    _bars(parts[0], levels, [one.nats for one in levels], BLUE)
    total = sum(one.nats.value for one in levels)
    parts[0].set_ylabel(f"nats per token added to the bound (in all {total:.3f})")
    if has_entropy:
        _bars(parts[1], levels, [one.cross_entropy for one in levels], ORANGE)
        parts[1].set_ylabel("cross-entropy, nats per masked token")
    shown = title.encode(errors="replace").decode()  # of a file name that is not UTF-8
    wide = 110 if has_entropy else 70
    figure.suptitle(textwrap.fill(shown, wide), fontsize=9, parse_math=False)
    figure.savefig(path, dpi=120, format="png")


def _bars(axes: Any, levels: Sequence[Level], values: Sequence[Ratio | None], color: str) -> None:
    for one, value in zip(levels, values, strict=True):
        if value is None:
            continue
        width, middle = one.high - one.low, (one.low + one.high) / 2
        axes.bar(middle, value.value, 0.92 * width, color=color, alpha=0.8)
        if value.stderr_rows is not None:
            axes.errorbar(middle, value.value, value.stderr_rows, color="#333333", capsize=3)
    axes.set_xlim(0, 1)
    axes.set_xlabel("time t (0 clean, 1 noise)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.2)
