"""Table and picture of what `benchmarks.weak_scaling` computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]


def efficiencies(work: float, near: float, far: float) -> tuple[float, float]:
    """Share of the time that is work: where none of the sending is hidden behind it, and where all
    of it is, as far as it fits."""
    return work / (work + near + far), work / max(work, near + far)


def table(result: Result) -> str:
    """A row for each size of the machine."""
    lines = [
        f"{result['name']}, {result['rows']} rows on each {result['chip']} chip, "
        f"work {result['work'] * 1e3:.4g} ms at {result['mfu']:.0%} MFU",
        "| chips | slices | mesh | a chip sends | through the network | links busy | network busy"
        " | share of work | binds below |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for place in result["places"]:
        mesh = " x ".join(f"{axis} {n}" for axis, n in place["mesh"].items() if n > 1) or "-"
        worst, best = efficiencies(result["work"], place["near"], place["far"])
        lines.append(
            f"| {place['chips']:,} | {place['slices']} | {mesh} | {place['sent'] / 1e9:.3g} GB"
            f" | {place['through_network'] / 1e6:.3g} MB | {place['near'] * 1e3:.3g} ms"
            f" | {place['far'] * 1e3:.3g} ms | {worst:.0%} to {best:.0%}"
            f" | {rows_in_words(place['binds_below'])} |"
        )
    if check := result.get("check"):
        lines.append(
            f"{check['slice']}: {check['modelled'] / 1e9:.4g} GB by the model, "
            f"{check['found'] / 1e9:.4g} GB in the program that was compiled for it"
        )
    return "\n".join(lines)


def rows_in_words(rows: float | None) -> str:
    return "always" if rows is None else "never" if rows == 0 else f"{rows:.2g} rows"


def draw(path: Path, results: Sequence[Result]) -> None:
    """Efficiency over the number of chips: for each result the band between all of the sending
    hidden (above) and none (below)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for i, result in enumerate(results):
        places = [p for p in result["places"] if p["chips"] > 1]
        chips = [p["chips"] for p in places]
        found = [efficiencies(result["work"], p["near"], p["far"]) for p in places]
        below, above = ([100 * pair[k] for pair in found] for k in (0, 1))
        colour = f"C{i}"
        axes.fill_between(chips, below, above, color=colour, alpha=0.15, linewidth=0)
        axes.plot(chips, below, "o-", color=colour, markersize=4, label=result["name"])
        axes.plot(chips, above, "-", color=colour, linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = [4, 16, 64, 256, 1024, 4096]
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.axvline(256, color="0.6", linestyle=":", linewidth=1)
    axes.annotate(
        "the largest slice\nof v5e and v6e",
        (256, 4),
        xytext=(6, 0),
        textcoords="offset points",
        fontsize=8,
        color="0.35",
    )
    axes.set_ylim(0, 103)
    axes.set_xlabel("chips, the same rows on each")
    axes.set_ylabel("share of the time that is work, %")
    axes.set_title(
        "Weak scaling on paper: no sending hidden (dots) to all of it (thin)", fontsize=10
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=150)
    plt.close(figure)
