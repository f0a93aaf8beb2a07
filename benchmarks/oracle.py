"""Distance of samplers from a known distribution, with exact denoisers in place of networks.

    python -m benchmarks.oracle                  # a table, and docs/samplers.png
    python -m benchmarks.oracle --rows 2000 --samplers "Ancestral(steps=8)"

The two distributions are those of `mdlm.evals.oracles`. Distances are total variations, of whole
rows or of neighbouring pairs of tokens. The floor is the distance of the same number of rows drawn
from the distribution itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import harness
from mdlm.config.component_text import from_text
from mdlm.errors import InputError
from mdlm.evals.oracles import Enumerated, HiddenMarkov, Oracle, sample
from mdlm.samplers.base import Sampler

PICTURE = Path("docs/samplers.png")

STEPS = (1, 2, 4, 8, 16, 32, 64)
CURVES = {
    "ancestral": "Ancestral(steps={n})",
    "ancestral, cosine grid": "Ancestral(steps={n}, grid='cosine')",
    "first hitting": "FirstHitting(per_call={k})",
    "Tweedie (score)": "Tweedie(steps={n})",
    "entropy order": "Parallel(order='entropy', rule=FixedCount(per_call={k}))",
    "confidence order": "Parallel(rule=FixedCount(per_call={k}))",
    "ReMDM, cap 0.04": "Remask(eta=0.04, steps={n})",
    "Psi, kappa 0.9": "Psi(kappa=0.9, steps={n})",
    "P2, eta 1": "PathPlanning(steps={n})",
}
"""Curves of the picture: samplers of `{n}` steps, or samplers that write `{k}` tokens of a row at
once, which needs as many network calls."""


def curve(oracle: Oracle, pattern: str, rows: int) -> list[tuple[int, float]]:
    """Points (steps, distance); samplers that write tokens at once have at most `length` steps."""
    points: list[tuple[int, float]] = []
    most = oracle.length if "{k}" in pattern else STEPS[-1]
    for n in sorted({*(n for n in STEPS if n <= most), most}):
        out = sample(
            oracle, from_text(pattern.format(n=n, k=-(-oracle.length // n)), Sampler), rows
        )
        points.append((n, oracle.distance(out.tokens)))
    return points


def draw(found: dict[str, dict[str, list[tuple[int, float]]]], floors: dict[str, float]) -> None:
    """Draws distance over steps, a panel for each distribution, to docs/samplers.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found))
    for axes, (name_of_panel, curves) in zip(panels, found.items(), strict=True):
        for index, (name, points) in enumerate(curves.items()):
            steps, distances = np.array(points).T
            axes.plot(steps, distances, marker="osD^vP*Xd"[index], markersize=4, label=name)
        axes.axhline(
            floors[name_of_panel],
            color="grey",
            linestyle=":",
            label="rows of the distribution itself",
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(STEPS, [str(n) for n in STEPS])
        axes.set(yscale="log", title=name_of_panel, xlabel="steps")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2, which="both")
    panels[0].set_ylabel("total variation to the distribution")
    panels[-1].legend(frameon=False, fontsize="small", loc="upper right", bbox_to_anchor=(1.45, 1))
    figure.savefig(PICTURE, dpi=120)
    print(f"\n({PICTURE})")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.oracle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows", type=int, default=20_000, help="rows drawn by each sampler (default: %(default)s)"
    )
    parser.add_argument(
        "--samplers", nargs="+", metavar="TEXT", help="measure these samplers only; no picture"
    )
    args = parser.parse_args(arguments)
    try:
        chosen = {text: from_text(text, Sampler) for text in args.samplers or ()}
    except InputError as error:
        parser.error(str(error))
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    floors: dict[str, float] = {}
    column = "NFE" if chosen else "steps"
    for oracle in (Enumerated(), HiddenMarkov()):
        floors[oracle.name] = oracle.distance(oracle.draw(args.rows, seed=0))
        print(
            f"\n{oracle.name}: {args.rows:,} rows of the distribution itself are"
            f" {floors[oracle.name]:.4f} off\n\n| sampler | {column} | total variation |"
            "\n|---|---|---|"
        )
        for text, sampler in chosen.items():
            out = sample(oracle, sampler, args.rows)
            print(f"| {text} | {int(out.nfe)} | {oracle.distance(out.tokens):.4f} |", flush=True)
        if chosen:
            continue
        found[oracle.name] = {}
        for name, pattern in CURVES.items():
            points = found[oracle.name][name] = curve(oracle, pattern, args.rows)
            steps = ", ".join(str(n) for n, _ in points)
            distances = ", ".join(f"{distance:.4f}" for _, distance in points)
            print(f"| {name} | {steps} | {distances} |", flush=True)
    if found:
        draw(found, floors)
    return 0


if __name__ == "__main__":
    sys.exit(harness.main(main))
