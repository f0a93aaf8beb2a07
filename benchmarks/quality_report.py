"""Table and picture of the runs that `benchmarks.quality` made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PICTURE = Path("docs/quality.png")


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
            f"| {minutes:g} | {recipe} | {len(nelbo)} | {runs[0]['steps']}"
            f" | {runs[0]['cost_of_a_step']:.2f} | {nelbo.mean():.4f} | {error:.4f} ({kind}) |"
        )
    if groups:
        draw(groups)


def draw(groups: Mapping[tuple[float, str], Sequence[Mapping[str, Any]]]) -> None:
    """Validation NELBO over training time, a line for each run, into docs/quality.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, ((minutes, recipe), runs) in enumerate(groups.items()):
        for run in runs:
            time, nelbo = np.array(run["curve"]).T
            label = f"{recipe}, {minutes:g} min" if run is runs[0] else None
            axes.plot(time / 60, nelbo, "o-", color=f"C{number % 10}", markersize=3, label=label)
    axes.set_xlabel("training time on one core, minutes")
    axes.set_ylabel("validation NELBO, nats per token (first 256 rows)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=120)
    print(f"({PICTURE})")
