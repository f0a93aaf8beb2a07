"""The picture of a run: loss, learning rate and speed over the steps."""

from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREY, GREEN = "#2563a8", "#d1720a", "#8a8f98", "#3a7d44"


def draw(
    entries: list[dict[str, Any]],
    path: Path,
    title: str,
    references: dict[str, float] | None = None,
) -> None:
    """Draws the lines of metrics.jsonl into `path` (PNG).

    `references` are horizontal lines in nats per token, such as the n-gram baselines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [e for e in entries if e["kind"] == "train"]
    valid = [e for e in entries if e["kind"] == "valid"]
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(2, 1))
    loss, rate, speed = (
        figure.add_subplot(grid[0, :]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[1, 1]),
    )
    if train:
        steps = np.array([e["step"] for e in train])
        nelbo = np.array([e["nelbo"] for e in train])
        loss.plot(steps, nelbo, color=BLUE, alpha=0.25, linewidth=0.8)
        loss.plot(steps, smooth(nelbo), color=BLUE, linewidth=1.6, label="training batches")
        rate.plot(steps, [e["learning_rate"] for e in train], color=GREEN)
        timed = [(e["step"], e["tokens_per_second"]) for e in train if "tokens_per_second" in e]
        if timed:
            speed.plot(*zip(*timed, strict=True), color=GREY)
    if valid:
        loss.plot(
            [e["step"] for e in valid],
            [e["nats per token"] for e in valid],
            "o-",
            color=ORANGE,
            markersize=4,
            label="validation, averaged parameters",
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
    if train or valid:
        loss.legend(frameon=False)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    speed.set_ylabel("tokens/s")
    speed.set_ylim(bottom=0)
    for axes in (loss, rate, speed):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(path, dpi=120)


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Running mean over a window of a share of the series, shorter at the ends."""
    half = max(1, round(len(values) * share / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)
