"""Table and picture of the results of `benchmarks.weak_scaling`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]


def efficiencies(work: float, near: float, far: float) -> tuple[float, float]:
    """Fraction of the time that is compute: without any overlap of communication, and with all of
    it overlapped as far as it fits."""
    return work / (work + near + far), work / max(work, near + far)


def table(result: Result) -> str:
    """Formats the table, a row for each machine size."""
    lines = [
        f"{result['name']}, {result['rows']} rows on each {result['chip']} chip, "
        f"compute {result['work'] * 1e3:.4g} ms at {result['mfu']:.0%} MFU",
        "| chips | slices | mesh | a chip sends | through the network | links busy | network busy"
        " | fraction of compute | bottleneck below |",
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
    """Draws, over the number of chips, the fraction of compute without overlap (solid) and with
    full overlap (dashed), and communication relative to compute: the bottleneck above one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    share, ratio = panels
    for i, result in enumerate(results):
        places = [p for p in result["places"] if p["chips"] > 1]
        chips = [p["chips"] for p in places]
        found = [efficiencies(result["work"], p["near"], p["far"]) for p in places]
        below, above = ([100 * pair[k] for pair in found] for k in (0, 1))
        look = dict(color=f"C{i}", linewidth=1.5)
        share.plot(chips, below, "o-", markersize=4, **look)
        share.plot(chips, above, "--", **look)
        times = [(p["near"] + p["far"]) / result["work"] for p in places]
        ratio.plot(chips, times, "o-", markersize=4, label=result["name"], **look)
    ticks = [4, 16, 64, 256, 1024, 4096]
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.axvline(256, color="0.6", linestyle=":", linewidth=1)
        axes.grid(alpha=0.25)
        axes.set_xlabel("chips, with the same rows on each")
    share.set_ylim(0, 104)
    share.set_ylabel("fraction of the time that is compute, %")
    share.set_title("communication not overlapped (solid), overlapped (dashed)", fontsize=10)
    note = dict(textcoords="offset points", fontsize=8, color="0.35")
    share.annotate("the largest slice\nof v5e and v6e", (256, 4), xytext=(5, 0), **note)
    ratio.set_yscale("log")
    ratio.axhline(1, color="0.3", linewidth=1)
    ratio.set_ylim(top=max(2.5, ratio.get_ylim()[1]))
    ratio.annotate("above: bottleneck is communication", (4, 1), xytext=(0, 4), **note)
    ratio.set_title("communication / compute", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
