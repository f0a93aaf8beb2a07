"""Tokens per second of the training step, and of the same step in PyTorch.

    python -m benchmarks.train_step                       # the sizes of the table, on the CPU
    python -m benchmarks.train_step --vocab 50258 --seconds 4
    python -m benchmarks.train_step --width 768 --depth 12 --heads 12 --length 1024 \\
        --vocab 50258 --batch 32 --dtype bfloat16 --no-torch          # on an accelerator

The step is the one that `mdlm train` runs, on one batch of random tokens and parameters moved off
their initial values; the PyTorch reference (`benchmarks/torch_reference.py`, eager and compiled)
starts from the same parameters. They alternate. Any setting of the experiment may be changed by its
dotted name (`--network.depth 2`); the PyTorch reference is measured for the paper's network in
float32 only.

"model TFLOP/s" counts the matmuls that the loss needs: blocks and full attention, the head at
masked positions, three times for a step; recomputation is not counted, nor the head of the PyTorch
reference at all positions. MFU is their fraction of the device's peak. "x torch" is the speed
relative to the faster form of the PyTorch reference (median over rounds). "peak MiB" is the memory
of the compiled step: state, batch and temporaries.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple
from types import ModuleType
from typing import Any

import jax
import numpy as np

from benchmarks import harness, synthetic
from mdlm.experiment.experiment import Experiment
from mdlm.keys import of_seed
from mdlm.models.network import count_parameters
from mdlm.parallel.mesh import check_batch, put_on_mesh
from mdlm.profiling.peak import peak_flops
from mdlm.times import balanced_order
from mdlm.train.batches import in_training
from mdlm.train.origin import started_from
from mdlm.train.step import compile_step, create_state
from mdlm.types import ArrayTree, Batch


class Ours:
    """The training step of `mdlm train`, called repeatedly on one batch."""

    def __init__(self, experiment: Experiment, columns: int):
        model = synthetic.model(experiment, columns)
        shape, settings = experiment.mesh, experiment.train
        sizes, devices = astuple(shape), jax.devices()
        self.mesh = shape.build(devices if -1 in sizes else devices[: math.prod(sizes)])
        check_batch(self.mesh, settings.batch_size, settings.accumulate)
        tx = experiment.optimizer.build(settings.steps)
        fresh = create_state(model, tx, self.mesh, of_seed(experiment.seed))
        self.initial: ArrayTree = synthetic.moved(fresh["params"])
        self.state = started_from(fresh, self.initial)
        length = experiment.data.packing.length
        rows = synthetic.batch_of(columns, settings.batch_size, length)
        order = balanced_order(settings.batch_size)
        self.batch = Batch(**put_on_mesh(self.mesh, in_training(rows, order)))
        # Built after the state, which every call donates.
        self.built = harness.build(compile_step(model, tx, self.mesh), self.state, self.batch)
        self.scored: list[jax.Array] = []

    def step(self) -> jax.Array:
        """Takes one more step; returns its loss."""
        self.state, metrics = self.built.call(self.state, self.batch)
        self.scored.append(metrics["scored"])
        return metrics["loss"]


def references(
    reference: ModuleType, experiment: Experiment, columns: int, params: ArrayTree
) -> dict[str, Any]:
    """The two forms of the PyTorch reference, eager and compiled, with parameters `params`."""
    import torch

    sizes = experiment.train.batch_size, experiment.data.packing.length
    x_0 = torch.from_numpy(synthetic.tokens(columns, *sizes)).long()

    def form(compiled: bool) -> Callable[[], Any]:
        training = reference.Training(
            reference.load(experiment.network, params["network"], columns, columns - 1),
            experiment.optimizer,
            experiment.train.ema_decay,
            compiled=compiled,
        )
        return lambda: training.step(x_0)

    return {"torch eager": form(False), "torch.compile": form(True)}


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns the report."""
    parser = harness.parser("train_step", __doc__, **synthetic.SIZES)
    parser.add_argument("--no-torch", action="store_true", help="leave out PyTorch")
    args, others = parser.parse_known_args(argv)
    experiment = synthetic.experiment(args, others)
    reference = None if args.no_torch else synthetic.torch_reference_for(args, others)
    ours = Ours(experiment, args.vocab)
    cases: dict[str, Callable[[], Any]] = {"mdlm": ours.step}
    compile_seconds = {"mdlm": ours.built.compile_seconds}
    if reference is not None:
        for name, step in references(reference, experiment, args.vocab, ours.initial).items():
            compile_seconds[name] = harness.first_call(name, step)
            cases[name] = step
    times = harness.alternate(cases, rounds=args.rounds, seconds=args.seconds)

    scored = float(np.mean(jax.device_get(ours.scored)))
    positions = args.batch * args.length
    flops = 3 * experiment.network.flops(args.batch, args.length, scored, args.vocab)
    devices = list(ours.mesh.devices.flat)
    peak = peak_flops(synthetic.dtype_of(experiment), devices)
    best = min(
        (name for name in cases if name != "mdlm"),
        key=lambda name: harness.median(times[name]),
        default=None,
    )
    rows = []
    for name, seconds in times.items():
        typical = harness.median(seconds)
        is_ours = name == "mdlm"
        rows.append({
            "case": name,
            "tokens/s": positions / typical,
            "ms/step": 1e3 * typical,
            "IQR ms": 1e3 * harness.spread(seconds),
            "model TFLOP/s": flops / typical / 1e12,
            "MFU %": harness.utilisation(flops / typical, peak),
            "peak MiB": harness.mebibytes(ours.built.peak_bytes) if is_ours else None,
            "compile s": compile_seconds[name],
            "x torch": harness.ratio(times[best], seconds) if best else None,
            "seconds": seconds,
        })  # fmt: skip
    sizes = " ".join(f"{name} {getattr(args, name)}" for name in synthetic.SIZES)
    facts = {
        "sizes": {name: getattr(args, name) for name in synthetic.SIZES},
        "settings": list(others),
        "parameters": count_parameters(ours.initial),
        "flops_per_step": flops,
        "scored": scored,
        "peak_flops": peak.flops,
        "peak_source": peak.source,
        "others": times.others,
        "devices": ours.mesh.size,
    }
    title = (
        f"Training step: {sizes} {' '.join(others)}\n"
        f"{facts['parameters']:,} parameters, head at {scored:,.0f} of {positions:,} positions, "
        f"{flops / 1e9:,.1f} GFLOP/step, {harness.peak_in_words(peak)}"
    )
    return harness.report(title, rows, args.json, **facts)


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
