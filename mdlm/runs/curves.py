"""Plots of a run: loss, learning rate and speed over the steps, loss over noise levels."""

from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREY, GREEN = "#2563a8", "#d1720a", "#8a8f98", "#3a7d44"
TEXT = "nats per token"
"""What the loss of text is called."""
EVALUATIONS = {"valid": "validation", "test": "test split", "train split": "training split"}
"""Kinds of lines in metrics.jsonl that are evaluations, and their names in the legend."""


def draw(
    entries: list[dict[str, Any]],
    path: Path,
    title: str,
    references: dict[str, float] | None = None,
) -> None:
    """Plots the lines of metrics.jsonl into `path` (PNG).

    `references` are horizontal lines in nats per token, such as the n-gram baselines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [e for e in entries if e["kind"] == "train"]
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    levels = [e["loss_by_time"] for e in train if "loss_by_time" in e]
    grid = figure.add_gridspec(2, 3 if levels else 2, height_ratios=(2, 1))
    parts = (grid[0, :], grid[1, 0], grid[1, 1])
    loss, rate, speed = (figure.add_subplot(part) for part in parts)
    if levels:
        _by_time(figure.add_subplot(grid[1, 2]), np.array(levels, float))
    _loss(loss, train)
    _evaluations(loss, entries)
    _references(loss, references or {})
    if train:
        rate.plot(*zip(*((e["step"], e["learning_rate"]) for e in train), strict=True), color=GREEN)
    timed = [(e["step"], e["tokens_per_second"]) for e in train if "tokens_per_second" in e]
    if timed:
        speed.plot(*zip(*timed, strict=True), color=GREY)
    shown = title.encode(errors="replace").decode()  # of a file name that is not UTF-8
    loss.set_title(shown, loc="left", fontsize=11, parse_math=False)
    if loss.get_legend_handles_labels()[0]:
        loss.legend(frameon=False)
    for axes, label in ((loss, loss_name(entries)), (rate, "learning rate"), (speed, "tokens/s")):
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        _plain(axes)
    for axes in (rate, speed):
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def _loss(axes: Any, train: list[dict[str, Any]]) -> None:
    """Plots the NELBO of the training batches, where it is finite, and its running mean."""
    finite = [(e["step"], e["nelbo"]) for e in train if e["nelbo"] is not None]
    if finite:
        steps, nelbo = (np.array(column) for column in zip(*finite, strict=True))
        axes.plot(steps, nelbo, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(nelbo), color=BLUE, linewidth=1.6, label="training batches")


def _evaluations(axes: Any, entries: list[dict[str, Any]]) -> None:
    """Plots the evaluations of each split, with their standard errors where the lines have them."""
    for kind, name in EVALUATIONS.items():
        if lines := [e for e in entries if e["kind"] == kind]:
            loss = loss_name(lines)
            axes.errorbar(
                [e["step"] for e in lines],
                np.array([e[loss] for e in lines], float),
                np.array([e.get(f"{loss} stderr_rows") for e in lines], float),
                fmt="o-",
                color=ORANGE,
                markersize=4,
                capsize=3,
                label=f"{name}, EMA parameters; standard error over sequences",
            )


def loss_name(entries: list[dict[str, Any]]) -> str:
    """Returns what the newest evaluation in the log calls its loss, the first of its metrics."""
    for entry in reversed(entries):
        if entry["kind"] in EVALUATIONS:
            found = [name for name in entry if f"{name} stderr_rows" in entry]
            return found[0] if found else TEXT
    return TEXT


def _references(axes: Any, references: dict[str, float]) -> None:
    """Draws a dashed line, with its name, at each reference."""
    for name, value in references.items():
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            f"{name} {value:.2f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=GREY,
            fontsize=9,
        )


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def _by_time(axes: Any, levels: np.ndarray) -> None:
    """Plots loss over the noise level: means over the first and the last fifth of the lines."""
    few = max(1, len(levels) // 5)
    edges = np.linspace(0, 1, levels.shape[1] + 1)
    for part, color, label in ((levels[:few], GREY, "first"), (levels[-few:], BLUE, "last fifth")):
        met = np.isfinite(part)
        mean = np.where(met, part, 0.0).sum(0) / np.maximum(met.sum(0), 1)
        axes.stairs(np.where(met.any(0), mean, np.nan), edges, color=color, label=label)
    axes.set_xlabel("noise level t")
    axes.set_ylabel("nats per token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Running mean over a window that is a fraction of the series, shorter at the ends."""
    half = max(1, round(len(values) * share / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)
