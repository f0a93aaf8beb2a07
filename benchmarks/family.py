"""Compares the methods of experiments/family, each trained on the same number of tokens.

    python -m benchmarks.family run --text tinyshakespeare.txt --seeds 0 1 2 --core 0
    python -m benchmarks.family run ar mdlm --text tinyshakespeare.txt --seeds 0
    python -m benchmarks.family run --books books       # a folder with train-*, valid, test .txt.gz
    python -m benchmarks.family report                  # tables, and docs/family.png

Each run is `mdlm train experiments/family/METHOD.py` (of books: experiments/family/books/), then
`mdlm eval`, on one core; the run folder is runs/family/METHOD-SEED (of books: runs/family-books/),
and finished runs are not repeated. The report has each method's own bound on the validation split,
with its protocol. docs/family.json keeps the results and curves of all runs ever reported (of some
the results alone); run folders that exist take precedence over it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import books

PICTURE = Path("docs/family.png")
RECORD = Path("docs/family.json")


@dataclass(frozen=True)
class Ground:
    """The data that the methods are compared on, and where experiments and runs are."""

    experiments: Path
    out: Path
    unit: str

    @property
    def methods(self) -> list[str]:
        """Names of the experiment files."""
        return sorted(path.stem for path in self.experiments.glob("*.py"))


TEXT = Ground(Path("experiments/family"), Path("runs/family"), "character")
BOOKS = Ground(Path("experiments/family/books"), Path("runs/family-books"), "token")


def train(ground: Ground, method: str, seed: int, settings: Sequence[str], core: int) -> None:
    """Trains and evaluates one run; the result is eval.json in the run folder."""
    folder = ground.out / f"{method}-{seed}"
    if (folder / "eval.json").is_file():
        print(f"{folder}: exists already", flush=True)
        return

    def mdlm(*words: str) -> str:
        command = [sys.executable, "-m", "mdlm", *words]
        # Child processes inherit the core.
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        try:
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        finally:
            os.sched_setaffinity(0, before)
        return done.stdout

    file = ground.experiments / f"{method}.py"
    mdlm("train", str(file), "--out", str(folder), "--seed", str(seed), *settings)
    scores = mdlm("eval", str(folder), "--split", "valid", "--json")
    (folder / "eval.json").write_text(scores, encoding="utf-8")
    print(f"{folder} {json.loads(scores)[0]['value']:.4f} nats per token", flush=True)


def results(ground: Ground) -> dict[str, list[dict[str, Any]]]:
    """Results and training curves of existing and earlier runs, by method, best first."""
    known = recorded().get(ground.out.name, {})
    runs = {(method, run["seed"]): run for method, kept in known.items() for run in kept}
    for path in sorted(ground.out.glob("*/eval.json")):
        method, _, seed = path.parent.name.rpartition("-")
        lines = [
            json.loads(s)
            for s in (path.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
        runs[method, int(seed)] = {
            "seed": int(seed),
            "score": json.loads(path.read_text(encoding="utf-8"))[0],
            "speed": float(np.median(speeds[2:] or speeds)) if speeds else None,
            "curve": [
                (line["step"], line["nats per token"]) for line in lines if line["kind"] == "valid"
            ],
        }
    found: dict[str, list[dict[str, Any]]] = {}
    for (method, _), run in sorted(runs.items()):
        found.setdefault(method, []).append(run)
    return dict(sorted(found.items(), key=lambda item: mean(item[1])))


def recorded() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The results that earlier reports kept."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def mean(runs: list[dict[str, Any]]) -> float:
    """Mean bound over the seeds, nats per token."""
    return float(np.mean([run["score"]["value"] for run in runs]))


def error(runs: list[dict[str, Any]]) -> float:
    """Standard error of that mean over the seeds; with one seed, over sequences."""
    values = [run["score"]["value"] for run in runs]
    if len(values) == 1:
        return runs[0]["score"]["stderr_rows"]
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def table(ground: Ground, found: dict[str, list[dict[str, Any]]]) -> None:
    """Prints a row for each method."""
    print(f"| method | seeds | nats/{ground.unit} | bits/{ground.unit} | tokens/s | protocol |")
    print("|---|---|---|---|---|---|")
    for method, runs in found.items():
        value, spread = mean(runs), error(runs)
        speeds = [run["speed"] for run in runs if run["speed"]]
        speed = f"{np.median(speeds):,.0f}" if speeds else ""
        protocol = runs[0]["score"]["protocol"].split(", ", 2)[-1].removesuffix(", EMA parameters")
        over = "seeds" if len(runs) > 1 else "sequences"
        print(
            f"| {method} | {len(runs)} | {value:.4f} +- {spread:.4f} ({over}) |"
            f" {value / np.log(2):.3f} | {speed} | {protocol} |"
        )
    print()


def differences(
    found: dict[str, list[dict[str, Any]]], base: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Validation while training, as the mean over seeds less that of the method `base`: `[steps]`
    for each method with a curve; and the steps."""
    curves = {
        method: np.mean([np.array(run["curve"]) for run in runs if run["curve"]], axis=0)
        for method, runs in found.items()
        if any(run["curve"] for run in runs)
    }
    steps, nats = curves[base].T
    return {method: curve[:, 1] - nats for method, curve in curves.items()}, steps


def apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Returns heights near the given ones, in the same order, that are at least `gap` apart."""
    order = np.argsort(heights)
    placed = np.array(heights, float)[order]
    for _ in range(200):
        short = np.maximum(gap - np.diff(placed), 0) / 2
        placed[1:] += short
        placed[:-1] -= short
    out = np.empty_like(placed)
    out[order] = placed
    return out


def draw(found: dict[str, list[dict[str, Any]]]) -> None:
    """Draws the bounds with their errors, and validation while training, to docs/family.png.

    The curves are differences from `mdlm`, which would otherwise all fall together. The
    autoregressive model, whose likelihood is exact and far below, is on the left only.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for index, runs in enumerate(found.values()):
        colour = f"C{index}"
        left.errorbar(mean(runs), -index, xerr=error(runs), fmt="o", color=colour, capsize=3)
    left.set_yticks([-index for index in range(len(found))], list(found))
    left.set_xlabel("bound on the validation split, nats per character")
    gaps, steps = differences(found, "mdlm")
    gaps.pop("ar", None)
    spread = max(np.ptp(list(gaps.values())), 1e-3)
    labels = apart(np.array([gap[-1] for gap in gaps.values()]), 0.045 * spread)
    for (method, gap), label in zip(gaps.items(), labels, strict=True):
        colour = f"C{list(found).index(method)}"
        right.plot(steps, gap, color=colour, linewidth=1.6)
        right.annotate(
            method,
            (steps[-1], gap[-1]),
            (1.04, label),
            textcoords=right.get_yaxis_transform(),
            color=colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6},
        )
    right.set_xlabel("step")
    right.set_ylabel(
        "validation while training, less that of mdlm\n(first 128 rows, mean of seeds)"
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(PICTURE, dpi=120)
    print(f"({PICTURE})")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.family",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate")
    run.add_argument(
        "methods",
        nargs="*",
        metavar="METHOD",
        help=f"methods (default: all): {', '.join(TEXT.methods)}",
    )
    run.add_argument("--text", help="a text file to train on")
    run.add_argument("--books", help="or a folder with the files of experiments/books.py")
    run.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    run.add_argument("--core", type=int, default=0, help="CPU core to run on (default: 0)")
    commands.add_parser("report", help="tables and picture of all runs")
    args = parser.parse_args(arguments)
    if args.command == "report":
        found = {ground.out.name: results(ground) for ground in (TEXT, BOOKS)}
        for ground in (TEXT, BOOKS):
            table(ground, found[ground.out.name])
        RECORD.write_text(json.dumps(found) + "\n", encoding="utf-8")
        draw(found[TEXT.out.name])
        return 0
    if (args.text is None) == (args.books is None):
        parser.error("run needs --text FILE or --books FOLDER")
    ground = TEXT if args.books is None else BOOKS
    unknown = sorted(set(args.methods) - set(ground.methods))
    if unknown:
        parser.error(
            f"{', '.join(unknown)}: no such method; choose from {', '.join(ground.methods)}"
        )
    if args.books is None:
        settings = ["--data.source.train", args.text]
    else:
        settings = [
            word for name, file in books(args.books).items() for word in (f"--{name}", file)
        ]
    for seed in args.seeds:
        for method in args.methods or ground.methods:
            train(ground, method, seed, settings, args.core)
    return 0


if __name__ == "__main__":
    sys.exit(main())
