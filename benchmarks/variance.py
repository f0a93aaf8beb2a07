"""Measures the noise of training gradients, by objective and by the way of drawing times.

    python -m benchmarks.variance runs/family/*-0

For one batch of each run's training text, at the run's parameters, gradients are drawn in pairs
(a, b) with the same data and independent noise:

    noise   E |a - b|^2 / 2 = tr Cov,  nats^2 per token^2
    signal  E <a, b> = |E gradient|^2

Both are unbiased, and each pair gives one sample. Each run is measured with its own objective, with
times that are independent, stratified (`LowDiscrepancy`), or on one grid (`Antithetic`). The run
named "mdlm" is also measured with other bounds of the same likelihood, which is possible because
its network is not conditioned on the time. Prints a table and draws docs/variance.png.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

PICTURE = Path("docs/variance.png")
RESULTS = Path("runs/benchmarks/variance.json")


def samplers(objective) -> Iterator[tuple[str, Any]]:
    """The objective with each way of drawing times."""
    from mdlm.times import IID, Antithetic, LowDiscrepancy

    for name, times in (
        ("independent", IID()),
        ("stratified", LowDiscrepancy()),
        ("one grid", Antithetic()),
    ):
        yield name, replace(objective, times=times)


def cases(run) -> Iterator[tuple[str, str, Any]]:
    """The cases `(bound, times, experiment)` to measure for a run."""
    from mdlm.objectives.discrete_time import DiscreteNelbo
    from mdlm.objectives.masked_count import OrderAgnostic
    from mdlm.objectives.nelbo import Nelbo
    from mdlm.processes.masked import Masked
    from mdlm.schedules.closed_form import Cosine

    e = run.experiment
    if not hasattr(e.objective, "times"):
        return  # no noise is drawn
    for times, objective in samplers(e.objective):
        yield e.name, times, replace(e, objective=objective)
    if e.name != "mdlm":
        return
    others = {
        "mdlm, times by importance": (Nelbo(importance=True), e.process),
        "mdlm, t_min = 0.05": (Nelbo(t_min=0.05), e.process),
        "mdlm, cosine schedule": (Nelbo(), Masked(schedule=Cosine())),
        "mdlm, 100 steps": (DiscreteNelbo(steps=100), e.process),
        "mdlm, counts of masks": (OrderAgnostic(), e.process),
    }
    for name, (objective, process) in others.items():
        for times, chosen in samplers(objective):
            yield name, times, replace(e, objective=chosen, process=process)


def measure(run, experiment, rows: int, pairs: int) -> dict[str, Any]:
    """Noise and signal of the gradient of nats per token, with standard errors over the pairs."""
    import jax
    import jax.numpy as jnp

    from mdlm.data.loader import TrainLoader
    from mdlm.experiment.model import Model
    from mdlm.times import balanced_order
    from mdlm.train.batches import in_training
    from mdlm.types import Batch

    model = Model(experiment, run.tokenizer.vocab, run.folder.counts())
    host = TrainLoader(run.dataset.train.rows, rows, 0).batch_at(0)
    batch = Batch(**jax.tree.map(jnp.asarray, in_training(host, balanced_order(rows))))

    @jax.jit
    def pair(params, batch, key):
        def loss(network, key):
            terms = model.loss({**params, "network": network}, key, batch)
            return terms.total / terms.count.sum()

        def dot(x, y):
            return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True))

        one, other = (jax.grad(loss)(params["network"], k) for k in jax.random.split(key))
        difference = jax.tree.map(jnp.subtract, one, other)
        return dot(difference, difference) / 2, dot(one, other)

    keys = jax.random.split(jax.random.key(0), pairs)
    values = np.array([jax.device_get(pair(run.params, batch, key)) for key in keys], np.float64)
    noise, signal = values.mean(0)
    errors = values.std(0, ddof=1) / pairs**0.5
    return {"noise": noise, "noise_error": errors[0], "signal": signal, "signal_error": errors[1]}


def report(results: list[dict[str, Any]], rows: int, pairs: int) -> None:
    """Prints the table and draws the picture."""
    print(f"{rows} rows per batch, {pairs} pairs")
    print("| bound | times | noise | signal | noise / signal |")
    print("|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['bound']} | {r['times']} | {r['noise']:.4f} +- {r['noise_error']:.4f}"
            f" | {r['signal']:.4f} +- {r['signal_error']:.4f} | {r['noise'] / r['signal']:.2f} |"
        )
    draw(results)


def draw(results: list[dict[str, Any]]) -> None:
    """Draws noise by bound, a colour for each way of drawing times, to docs/variance.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bounds = list(dict.fromkeys(r["bound"] for r in results))
    figure = Figure(figsize=(8, 0.8 + 0.34 * len(bounds)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, times in enumerate(dict.fromkeys(r["times"] for r in results)):
        own = [r for r in results if r["times"] == times]
        places = np.array([-bounds.index(r["bound"]) for r in own]) + 0.2 - 0.2 * i
        axes.errorbar(
            [r["noise"] for r in own],
            places,
            xerr=[r["noise_error"] for r in own],
            fmt="o",
            markersize=4,
            capsize=2,
            label=f"times {times}",
        )
    axes.set_yticks([-i for i in range(len(bounds))], bounds)
    axes.set_xscale("log")
    axes.set_xlabel("noise of a batch's gradient, tr Cov, (nats per token)^2")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2, which="both")
    figure.savefig(PICTURE, dpi=120)
    print(f"({PICTURE})")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--rows", type=int, default=16, help="rows per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--pairs", type=int, default=32, help="pairs of gradients per case (default: %(default)s)"
    )
    parser.add_argument("--core", type=int, default=0, help="CPU core to run on")
    args = parser.parse_args(arguments)
    if args.pairs < 2 or args.rows < 1:
        parser.error(f"--pairs {args.pairs} --rows {args.rows}: must be at least 2 and at least 1")
    os.sched_setaffinity(0, {args.core})  # before JAX counts the cores
    import mdlm
    from mdlm.cli.malloc import keep_freed
    from mdlm.errors import InputError

    keep_freed()
    results = []
    try:
        for folder in args.runs:
            run = mdlm.load(folder)
            for bound, times, experiment in cases(run):
                found = measure(run, experiment, args.rows, args.pairs)
                results.append({"bound": bound, "times": times, **found})
                print(f"{bound}, times {times}: {found['noise']:.4f}", file=sys.stderr, flush=True)
    except InputError as error:
        parser.error(str(error))
    if not results:
        parser.error("none of these runs draws noise; name runs of diffusion models")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report(results, args.rows, args.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
