"""Table and picture of the runs of `benchmarks.quality`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PICTURE = Path("docs/quality.png")

Groups = Mapping[tuple[float, str], Sequence[Mapping[str, Any]]]
"""Groups runs by minutes and recipe."""


def report(results: Sequence[Mapping[str, Any]]) -> None:
    """Prints a row for each recipe and length of run, and draws the validation curves."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["minutes"], result["recipe"]), []).append(result)
    print("| minutes | recipe | seeds | steps | cost of a step | nats/token | standard error |")
    print("|---|---|---|---|---|---|---|")
    for (minutes, recipe), runs in groups.items():
        nelbo = np.array([run["nelbo"] for run in runs])
        error = nelbo.std(ddof=1) / len(nelbo) ** 0.5 if len(nelbo) > 1 else runs[0]["noise"]
        kind = "seeds" if len(nelbo) > 1 else "noise"
        print(
            f"| {minutes:.3g} | {recipe} | {len(nelbo)} | {runs[0]['steps']}"
            f" | {runs[0]['cost_of_a_step']:.2f} | {nelbo.mean():.4f} | {error:.4f} ({kind}) |"
        )
    shortest = min((minutes for minutes, _ in groups), default=0.0)
    long = {key: runs for key, runs in groups.items() if key[0] > shortest}
    if any(name.startswith("paper") for _, name in long):
        compare(long)
    if groups:
        draw({key: runs for key, runs in groups.items() if key not in long}, long)


def mean_curve(runs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Training time in minutes and validation NELBO, mean over the seeds, `[n 2]`."""
    return np.mean([run["curve"] for run in runs], axis=0) / np.array([60.0, 1.0])


def baseline(long: Groups) -> tuple[tuple[float, str], float]:
    """The longest runs of the paper's recipe (at any learning rate), and their final NELBO."""
    key = max(key for key in long if key[1].startswith("paper"))
    return key, float(mean_curve(long[key])[-1, 1])


def compare(long: Groups) -> None:
    """Prints when each of the other long runs reaches the final NELBO of the paper's recipe."""
    (minutes, name), target = baseline(long)
    print(f"{name} ends at {target:.4f} after {minutes:.3g} minutes (first 256 rows)")
    for (own, recipe), runs in long.items():
        times, nelbo = mean_curve(runs).T
        if recipe == name or nelbo.min() > target:
            continue
        # On a falling curve, interpolated linearly between the validations.
        reached = np.interp(-target, -nelbo, times)
        print(f"{recipe}, in runs of {own:.3g} minutes, reaches it after {reached:.1f} minutes")


def draw(short: Groups, long: Groups) -> None:
    """Draws the results of the short runs and the curves of the long runs to docs/quality.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for place, runs in enumerate(short.values()):
        left.plot([run["nelbo"] for run in runs], [-place] * len(runs), "o", color="C0")
    left.set_yticks([-place for place in range(len(short))], [name for _, name in short])
    left.set_xlabel("NELBO at the end of the short runs, nats per token")
    for number, ((minutes, recipe), runs) in enumerate(sorted(long.items())):
        for run in runs:
            times, nelbo = mean_curve([run]).T
            label = f"{recipe}, {minutes:.3g} minutes" if run is runs[0] else None
            right.plot(times, nelbo, "o-", color=f"C{number}", markersize=3, label=label)
    if any(name.startswith("paper") for _, name in long):
        (minutes, _), target = baseline(long)
        right.axhline(target, color="grey", linestyle=":")
        right.axvline(minutes / 2, color="grey", linestyle=":")
        right.legend(frameon=False)
    right.set_xlabel("training time on one core, minutes")
    right.set_ylabel("validation NELBO, nats per token (first 256 rows)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(PICTURE, dpi=120)
    print(f"({PICTURE})")
