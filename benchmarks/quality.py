"""Quality per second: validation NELBO of training recipes after equal time on one CPU core.

    python -m benchmarks.quality run paper muon --corpus books --minutes 5 --core 0
    python -m benchmarks.quality run paper best --corpus books --minutes 12 --seeds 0 1 2
    python -m benchmarks.quality cost best --corpus books    # time of its step
    python -m benchmarks.quality report                  # table, and docs/quality.png

A recipe is `experiments/books.py` with some settings changed (`RECIPES` below, by dotted name). All
get the same time, not the same number of steps. Before a run, its step and the paper's are timed in
turns in one process; the median ratio of the two times gives the number of steps that the recipe
can make in the time of the paper's run. So the load of the machine during a run does not change its
number of steps. The ratio needs a quiet machine: on a busy one it varies by a fifth, and --cost can
give a ratio measured before. Compilation, evaluation and reading the text do not count as time.
Each run is an ordinary run folder, runs/quality/RECIPE-MINUTES-SEED; `quality.json` in it holds the
result. All runs are evaluated by the NELBO of `Nelbo()`, whatever distribution of times they were
trained with.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.corpus import books

OUT = Path("runs/quality")
EXPERIMENT = Path("experiments/books.py")
SECONDS_PER_STEP = 0.31
"""Seconds that a step of the paper's recipe counts as, by default."""

ADAM = {"optimizer.learning_rate": "1e-3"}
MUON = {
    "optimizer": "Muon(warmup_steps=100)",
    "optimizer.learning_rate": "0.01",
    "optimizer.adam_rate": "1.0",
    "optimizer.b2": "0.98",
    "network.dropout": "0.0",
}
WSD = {"optimizer.schedule": "wsd", "optimizer.cooldown": "0.4"}
BASE = {**MUON, **WSD}
QK_RMS = {"network.qk_norm": "true", "network.norm": "rms"}
RECIPES: dict[str, dict[str, str]] = {
    "paper": {},
    "paper-1e-3": ADAM,
    "paper-3e-3": {"optimizer.learning_rate": "3e-3"},
    "adamw-no-dropout": {**ADAM, "network.dropout": "0.0"},
    "adamw-wsd": {**ADAM, **WSD, "network.dropout": "0.0"},
    "muon": MUON,
    "muon-wsd": BASE,
    "qk-rms": {**BASE, **QK_RMS},
    "relu2": {**BASE, "network.mlp": "relu2"},
    "swiglu": {**BASE, "network.mlp": "swiglu"},
    "plain": {**BASE, "network.use_bias": "false", "network.cond_dim": "0"},
    "t-min": {**BASE, "objective.t_min": "0.05"},
    "importance": {**BASE, "objective.importance": "true"},
    "iid-times": {**BASE, "objective.times": "IID"},
    "best": {**BASE, **QK_RMS, "objective.t_min": "0.05"},
}


def experiment(recipe: str, corpus: str, steps: int, seed: int):
    """The experiment of a recipe, and its overrides by dotted name."""
    from mdlm.config.overrides import apply
    from mdlm.experiment.loading import load_file

    changes = {"evaluation.objective": "Nelbo()", **RECIPES[recipe]}
    run = {"train.steps": str(steps), "seed": str(seed), "train.eval_every": str(-(-steps // 8))}
    return apply(load_file(EXPERIMENT), [*books(corpus).items(), *changes.items(), *run.items()])


class Stepper:
    """The compiled step of an experiment on one batch of its data, to be timed."""

    def __init__(self, e, dataset):
        import jax

        from mdlm.data.loader import TrainLoader
        from mdlm.experiment.model import Model
        from mdlm.parallel.mesh import put_on_mesh
        from mdlm.times import balanced_order
        from mdlm.train.batches import in_training
        from mdlm.train.step import compile_step, create_state
        from mdlm.types import Batch

        mesh, model = e.mesh.build(), Model(e, dataset.vocab)
        tx = e.optimizer.build(e.train.steps)
        size = e.train.batch_size
        rows = TrainLoader(dataset.train.rows, size, 0).batch_at(0)
        self.batch = Batch(**put_on_mesh(mesh, in_training(rows, balanced_order(size))))
        self.state = create_state(model, tx, mesh, jax.random.key(0))
        self.step = compile_step(model, tx, mesh)

    def __call__(self):
        self.state, metrics = self.step(self.state, self.batch)
        return metrics


def cost(recipe: str, dataset, corpus: str) -> float:
    """Time of a step of the recipe, relative to a step of the paper's recipe."""
    import numpy as np

    from benchmarks.harness import alternate

    if recipe == "paper":
        return 1.0
    cases = {
        name: Stepper(experiment(name, corpus, 1000, 0), dataset) for name in ("paper", recipe)
    }
    times = alternate(cases, rounds=9, seconds=1.0)
    return float(np.median(np.divide(times[recipe], times["paper"])))


def train(recipe: str, dataset, args: argparse.Namespace, seed: int, ratio: float) -> None:
    """Trains and evaluates one run; writes the result to quality.json."""
    import jax

    from mdlm.experiment.model import Model
    from mdlm.runs.folder import RunFolder
    from mdlm.runs.parameters import restore_parameters
    from mdlm.train.events import Evaluated, Stepped
    from mdlm.train.loop import Trainer

    steps = round(args.minutes * 60 / args.step_seconds / ratio)
    e = experiment(recipe, args.corpus, steps, seed)
    folder = RunFolder(OUT / f"{recipe}-{args.minutes:g}-{seed}")
    if (folder.path / "quality.json").is_file():
        print(f"{folder.path}: exists already", flush=True)
        return
    if not folder.exists:
        folder.begin(EXPERIMENT.read_text(encoding="utf-8"), [], e)
    model, mesh = Model.on(e, dataset), e.mesh.build()
    trainer = Trainer(model, mesh, e.optimizer.build(steps), dataset, folder)
    curve = []
    for event in trainer.run():
        if isinstance(event, Evaluated):
            share = event.step / steps
            curve.append((share * args.minutes * 60, event.metrics[0].value))
            print(f"{folder.path} {share:4.0%} {curve[-1][1]:.4f}", flush=True)
        elif isinstance(event, Stepped):
            speed = event.metrics.get("tokens_per_second")
    _, ema = restore_parameters(folder, model.abstract_params(mesh))
    metric = trainer.scorer.run(ema, e.evaluation)[0]
    result = {
        "recipe": recipe,
        "changes": RECIPES[recipe],
        "minutes": args.minutes,
        "seed": seed,
        "steps": steps,
        "cost_of_a_step": ratio,
        "tokens": steps * e.train.batch_size * e.data.packing.length,
        "tokens_per_second_at_the_end": speed,
        "nelbo": metric.value,
        "noise": metric.stderr,
        "sequences": metric.stderr_rows,
        "protocol": metric.protocol,
        "curve": curve,
        "jax": jax.__version__,
    }
    (folder.path / "quality.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{folder.path} {metric}", flush=True)


def results() -> list[Mapping[str, Any]]:
    """The results of all runs, sorted by minutes and then by NELBO."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(OUT.glob("*/quality.json"))
    ]
    return sorted(found, key=lambda r: (r["minutes"], r["nelbo"]))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train recipes one after the other")
    costs = commands.add_parser(
        "cost", help="time of a recipe's step, relative to the paper's recipe"
    )
    for sub in (run, costs):
        sub.add_argument("recipes", nargs="+", choices=RECIPES, help="recipes by name")
        sub.add_argument("--corpus", required=True, help="folder with train-*, valid, test .txt.gz")
        sub.add_argument("--core", type=int, default=0, help="CPU core to run on (default: 0)")
    run.add_argument("--minutes", type=float, default=5, help="length of a run (default: 5)")
    run.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    run.add_argument("--cost", type=float, help="relative time of a step, measured before")
    run.add_argument(
        "--step-seconds",
        type=float,
        default=SECONDS_PER_STEP,
        help="time of a step of the paper's recipe",
    )
    commands.add_parser("report", help="table and picture of all runs")
    args = parser.parse_args()
    if args.command == "report":
        from benchmarks.quality_report import report

        report(results())
        return 0
    os.sched_setaffinity(0, {args.core})  # before JAX counts the cores
    import jax

    from mdlm.cli.malloc import keep_freed

    keep_freed()
    jax.config.update("jax_compilation_cache_dir", str(OUT / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    dataset = experiment("paper", args.corpus, 1000, 0).data.load(None)
    for recipe in args.recipes:
        known = args.cost if args.command == "run" else None
        ratio = known or cost(recipe, dataset, args.corpus)
        if args.command == "cost":
            print(f"{recipe} {ratio:.3f}", flush=True)
            continue
        for seed in args.seeds:
            train(recipe, dataset, args, seed, ratio)
    return 0


if __name__ == "__main__":
    sys.exit(main())
