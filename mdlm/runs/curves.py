"""Plots of a run: loss, learning rate and speed over the steps, loss over noise levels."""

from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREY, GREEN = "#2563a8", "#d1720a", "#8a8f98", "#3a7d44"
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
    evaluated = {name: [e for e in entries if e["kind"] == name] for name in EVALUATIONS}
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    levels = [e["loss_by_time"] for e in train if "loss_by_time" in e]
    columns = 3 if levels else 2
    grid = figure.add_gridspec(2, columns, height_ratios=(2, 1))
    loss, rate, speed = (
        figure.add_subplot(grid[0, :]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[1, 1]),
    )
    if levels:
        _by_time(figure.add_subplot(grid[1, 2]), np.array(levels, float))
    finite = [(e["step"], e["nelbo"]) for e in train if e["nelbo"] is not None]
    if finite:
        steps, nelbo = (np.array(column) for column in zip(*finite, strict=True))
        loss.plot(steps, nelbo, color=BLUE, alpha=0.25, linewidth=0.8)
        loss.plot(steps, smooth(nelbo), color=BLUE, linewidth=1.6, label="training batches")
    if train:
        steps = [e["step"] for e in train]
        rate.plot(steps, [e["learning_rate"] for e in train], color=GREEN)
        timed = [(e["step"], e["tokens_per_second"]) for e in train if "tokens_per_second" in e]
        if timed:
            speed.plot(*zip(*timed, strict=True), color=GREY)
    for kind, lines in evaluated.items():
        if lines:
            loss.plot(
                [e["step"] for e in lines],
                np.array([e["nats per token"] for e in lines], float),
                "o-",
                color=ORANGE,
                markersize=4,
                label=f"{EVALUATIONS[kind]}, EMA parameters",
            )
    for name, value in (references or {}).items():
        loss.axhline(value, color=GREY, linestyle="--", linewidth=1)
        loss.annotate(
            f"{name} {value:.2f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=GREY,
            fontsize=9,
        )
    loss.set_ylabel("nats per token")
    loss.set_title(title, loc="left", fontsize=11)
    if finite or any(evaluated.values()):
        loss.legend(frameon=False)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    speed.set_ylabel("tokens/s")
    speed.set_ylim(bottom=0)
    for axes in (loss, rate, speed):
        axes.set_xlabel("step")
        _plain(axes)
    figure.savefig(path, dpi=120)


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
