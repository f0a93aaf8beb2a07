"""The family compared: the methods of experiments/family, each for the same number of tokens.

    python -m benchmarks.family run --text tinyshakespeare.txt --seeds 0 1 2 --core 0
    python -m benchmarks.family run ar mdlm --text tinyshakespeare.txt --seeds 0
    python -m benchmarks.family report          # a table, and docs/family.png

Each run is `mdlm train experiments/family/METHOD.py`, then `mdlm eval`, as anyone would call them,
on one core; the folder is runs/family/METHOD-SEED, and runs that are done are not repeated. What is
reported of each method is its own bound on the validation split (its protocol stands beside it).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path("runs/family")
FOLDER = Path("experiments/family")
METHODS = sorted(path.stem for path in FOLDER.glob("*.py"))
PICTURE = Path("docs/family.png")


def train(method: str, seed: int, text: str, core: int) -> None:
    """One run and its score, in eval.json of the run folder."""
    folder = OUT / f"{method}-{seed}"
    if (folder / "eval.json").is_file():
        print(f"{folder}: done before", flush=True)
        return

    def mdlm(*words: str) -> str:
        command = [sys.executable, "-m", "mdlm", *words]
        done = subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        return done.stdout

    file = FOLDER / f"{method}.py"
    settings = ("--seed", str(seed), "--data.source.train", text)
    mdlm("train", str(file), "--out", str(folder), *settings)
    scores = mdlm("eval", str(folder), "--split", "valid", "--json")
    (folder / "eval.json").write_text(scores)
    print(f"{folder} {json.loads(scores)[0]['value']:.4f} nats per token", flush=True)


def results() -> dict[str, list[dict[str, Any]]]:
    """Scores and training curves of the runs there are, by method, best first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(OUT.glob("*/eval.json")):
        method, _, seed = path.parent.name.rpartition("-")
        lines = [json.loads(s) for s in (path.parent / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "train"]
        found.setdefault(method, []).append(
            {
                "seed": int(seed),
                "score": json.loads(path.read_text())[0],
                "speed": float(np.median([line["tokens_per_second"] for line in steps[2:]])),
                "curve": [
                    (line["step"], line["nats per token"])
                    for line in lines
                    if line["kind"] == "valid"
                ],
            }
        )
    return dict(sorted(found.items(), key=lambda item: mean(item[1])))


def mean(runs: list[dict[str, Any]]) -> float:
    """Mean bound over the seeds, nats per token."""
    return float(np.mean([run["score"]["value"] for run in runs]))


def error(runs: list[dict[str, Any]]) -> float:
    """Standard error of that mean, from the spread of the seeds (nan with one)."""
    values = [run["score"]["value"] for run in runs]
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def report() -> None:
    """Prints a row for each method and draws the bounds."""
    found = results()
    print("| method | seeds | nats/character | bits/character | tokens/s | what the number is |")
    print("|---|---|---|---|---|---|")
    for method, runs in found.items():
        value, spread = mean(runs), error(runs)
        speed = np.median([run["speed"] for run in runs])
        protocol = runs[0]["score"]["protocol"].split(", ", 3)[-1]
        print(
            f"| {method} | {len(runs)} | {value:.4f} +- {spread:.4f} |"
            f" {value / np.log(2):.3f} | {speed:,.0f} | {protocol} |"
        )
    if found:
        draw(found)


def draw(found: dict[str, list[dict[str, Any]]]) -> None:
    """The bounds with their errors, and validation while training, into docs/family.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for place, (method, runs) in enumerate(found.items()):
        colour = f"C{place}"
        left.errorbar(mean(runs), -place, xerr=error(runs), fmt="o", color=colour, capsize=3)
        for run in runs:
            steps, nats = np.array(run["curve"]).T
            label = method if run is runs[0] else None
            right.plot(steps, nats, color=colour, linewidth=1, label=label)
    left.set_yticks([-place for place in range(len(found))], list(found))
    left.set_xlabel("bound on the validation split, nats per character")
    right.set_xlabel("step")
    right.set_ylabel("validation while training (first 128 rows)")
    right.legend(frameon=False, ncols=2, fontsize="small")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.savefig(PICTURE, dpi=120)
    print(f"({PICTURE})")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.family",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score")
    run.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}")
    run.add_argument("--text", required=True, help="the text file")
    run.add_argument("--seeds", type=int, nargs="+", default=[0])
    run.add_argument("--core", type=int, default=0, help="the core to stay on")
    commands.add_parser("report", help="table and picture of the runs there are")
    args = parser.parse_args()
    if args.command == "report":
        report()
        return 0
    unknown = sorted(set(args.methods) - set(METHODS))
    if unknown:
        parser.error(f"no method {', '.join(unknown)}: there are {', '.join(METHODS)}")
    for seed in args.seeds:
        for method in args.methods or METHODS:
            train(method, seed, args.text, args.core)
    return 0


if __name__ == "__main__":
    sys.exit(main())
