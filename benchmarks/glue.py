"""Fine-tunes a run on tasks of GLUE at several learning rates, and prints a table of the results.

    python -m benchmarks.glue run --init-from runs/bert_mdlm --out runs/glue --seeds 0 1 2
    python -m benchmarks.glue run --init-from runs/bert --out runs/glue-bert --tasks mrpc rte \
        --rates 2e-5 5e-5 --data.source.path copies/glue
    python -m benchmarks.glue report --out runs/glue

Each run is `mdlm train glue --task TASK` with its learning rate and seed, then `mdlm eval` of the
validation split (and of MNLI's mismatched one); the run folder is OUT/TASK-RATE-SEED, and finished
runs are not repeated. Further words are settings of `mdlm train`. A cell of the table has the mean
over seeds in percent, with its standard error if there are several. The best rate of a task is
chosen on the split that is reported, as is usual for GLUE, whose test labels are hidden.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np

from mdlm.data import GlueTask

RATES = ("2e-5", "3e-5", "4e-5", "5e-5")
"""The learning rates that BERT was fine-tuned at (arXiv:1810.04805, sec. 4.1). MDLM took 2e-5."""
METRICS = {
    "qqp": "F1",
    "mrpc": "F1",
    "stsb": "Spearman correlation",
    "cola": "Matthews correlation",
}
"""The metric of each task, where it is not the accuracy."""


def train(folder: Path, task: str, rate: str, seed: int, settings: list[str]) -> None:
    """Trains and evaluates one run; the results are glue.json in its folder."""
    if (folder / "glue.json").is_file():
        print(f"{folder}: exists already", flush=True)
        return

    def mdlm(*words: str) -> str:
        command = [sys.executable, "-m", "mdlm", *words]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        return done.stdout

    own = ["--task", task, "--optimizer.learning_rate", rate, "--seed", str(seed)]
    mdlm("train", "glue", *own, "--out", str(folder), *settings)
    splits = ("valid", "test") if task == "mnli" else ("valid",)
    found = {}
    for split in splits:
        metrics = json.loads(mdlm("eval", str(folder), "--split", split, "--json"))
        found[split] = {one["name"]: one["value"] for one in metrics}
    text = json.dumps({"task": task, "rate": rate, "seed": seed, "splits": found})
    (folder / "glue.json").write_text(text + "\n", encoding="utf-8")
    name = METRICS.get(task, "accuracy")
    print(f"{folder} {name} {found['valid'][name]:.4f}", flush=True)


def results(out: Path) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Returns the values over seeds of each row of the table, task and metric, by rate."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for file in sorted(out.glob("*/glue.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        name = METRICS.get(one["task"], "accuracy")
        for split, metrics in one["splits"].items():
            row = f"{one['task']}, mismatched" if split == "test" else one["task"]
            by_rate = found.setdefault((row, name), {})
            by_rate.setdefault(one["rate"], []).append(100 * metrics[name])
    return found


def table(found: dict[tuple[str, str], dict[str, list[float]]]) -> str:
    """Returns the results as a table of Markdown, the best rate of each task in bold."""
    rates = sorted({rate for by_rate in found.values() for rate in by_rate}, key=float)
    lines = [f"| task | metric | {' | '.join(rates)} |", "|---" * (2 + len(rates)) + "|"]
    for (task, name), by_rate in sorted(found.items()):
        best = max(by_rate, key=lambda rate: np.mean(by_rate[rate]))
        cells = []
        for rate in rates:
            values = by_rate.get(rate, [])
            words = f"{np.mean(values):.2f}" if values else ""
            if len(values) > 1:
                words += f" +- {np.std(values, ddof=1) / math.sqrt(len(values)):.2f}"
            cells.append(f"**{words}**" if rate == best else words)
        lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
    seeds = {len(values) for by_rate in found.values() for values in by_rate.values()}
    least, most = min(seeds), max(seeds)
    lines.append(f"\n{least if least == most else f'{least} to {most}'} seed(s); +- over seeds")
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--out", type=Path, default=Path("runs/glue"), help="folder of the runs")
    parser.add_argument("--init-from", metavar="RUN", help="the run that is fine-tuned")
    parser.add_argument(
        "--tasks", nargs="+", choices=get_args(GlueTask), default=get_args(GlueTask)
    )
    parser.add_argument("--rates", nargs="+", default=RATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args, settings = parser.parse_known_args()
    if args.what == "run":
        if args.init_from is None:
            parser.error("--init-from RUN: name the run that is fine-tuned")
        settings = ["--init-from", args.init_from, *settings]
        for task in args.tasks:
            for rate in args.rates:
                for seed in args.seeds:
                    train(args.out / f"{task}-{rate}-{seed}", task, rate, seed, settings)
    found = results(args.out)
    if not found:
        parser.error(f"{args.out} has no results; begin with: run --init-from RUN")
    print(table(found))


if __name__ == "__main__":
    main()
