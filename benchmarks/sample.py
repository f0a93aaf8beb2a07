"""Tokens per second of generation, compared with the published cached sampler in PyTorch.

    python -m benchmarks.sample                           # 8 sequences of 128, 128 steps
    python -m benchmarks.sample --steps 1000 --rounds 1
    python -m benchmarks.sample --total 256 --stride 64   # windows that slide along longer texts
    python -m benchmarks.sample --no-torch                 # without PyTorch

`mdlm.samplers.loop.generate` with `Ancestral`, as `mdlm sample` runs it, against the published
"ddpm_cache" on the PyTorch reference, whose network has the same parameters; both sample the same
distribution, with different random numbers. They alternate, one generation each. NFE is the mean
number of network calls. "executed TFLOP/s" counts the matmuls that each must execute. In a call,
ours computes the blocks at all positions, but the head, and the last block except its keys and
values, only at the positions that are written; the PyTorch reference computes all at all positions.
"""

import argparse
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, synthetic
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.model import Model
from mdlm.generation.windows import Windows, generate_long
from mdlm.models.network import Network
from mdlm.profiling.peak import peak_flops
from mdlm.samplers.loop import generate
from mdlm.samplers.state import Samples
from mdlm.types import ArrayTree

SIZES = {**synthetic.SIZES, "batch": 8, "steps": 128, "total": 0, "stride": 64}
"""`total` is the number of tokens of a text, 0 for one row."""


class Ours:
    """Generation of a batch, each time from another key."""

    def __init__(self, model: Model, params: ArrayTree, batch: int, total: int, window: Windows):
        def draw(params, keys, tokens, is_fixed) -> Samples:
            return generate(
                keys,
                tokens,
                is_fixed,
                sampler=model.experiment.sampler,
                diffusion=model.diffusion(params),
            )

        self.params, self.key, self.number = jax.device_put(params), jax.random.key(0), 0
        self.batch, self.total, self.window, self.vocab = batch, total, window, model.vocab
        shape = (batch, window.length)
        nothing = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
        self.built = harness.build(draw, self.params, self._keys(), *nothing)
        self.compile_seconds = self.built.compile_seconds
        self.calls: list[int] = []

    def _keys(self) -> jax.Array:
        return jax.random.split(jax.random.fold_in(self.key, self.number), self.batch)

    def generate(self) -> np.ndarray:
        """Tokens `[b total]`."""
        self.number += 1
        out = generate_long(
            self._keys(),
            [[]] * self.batch,
            self.total,
            window=self.window,
            run=lambda *arguments: self.built.call(self.params, *arguments),
            vocab=self.vocab,
        )
        self.calls.append(out.nfe)
        return out.tokens


class TorchReference:
    """The same on the PyTorch reference."""

    def __init__(
        self,
        reference: ModuleType,
        experiment: Experiment,
        columns: int,
        params: ArrayTree,
        total: int,
        stride: int,
        *,
        compiled: bool,
    ):
        import torch

        loaded = reference.load(experiment.network, params["network"], columns, columns - 1).eval()
        logits = torch.compile(loaded, fullgraph=True) if compiled else loaded
        sizes = (columns - 1, experiment.train.batch_size, experiment.data.packing.length)
        steps = getattr(experiment.sampler, "steps", 0)
        self.calls: list[int] = []

        def draw(steps: int) -> Any:
            return reference.generate_long(logits, *sizes, steps, total=total, stride=stride)

        self.compile_seconds = harness.first_call("the PyTorch reference", lambda: draw(1))
        self._draw = lambda: draw(steps)

    def generate(self) -> Any:
        """Tokens `[b total]`."""
        tokens, calls = self._draw()
        self.calls.append(calls)
        return tokens


def executed(
    network: Network, args: argparse.Namespace, written: int, nfe: float, *, defers_last_block: bool
) -> float:
    """FLOPs of the matmuls that `nfe` calls execute to write so many tokens."""
    rows, length, width = args.batch, args.length, args.width
    if not defers_last_block:
        return nfe * network.flops(rows, length, rows * length, args.vocab)
    blocks = network.flops(rows, length, 0, args.vocab)
    last = blocks / args.depth
    head = network.flops(0, 0, written, args.vocab)
    keys_and_values = nfe * 2 * rows * length * 2 * width * width
    return nfe * (blocks - last) + keys_and_values + last * written / (rows * length) + head


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns the report."""
    parser = harness.parser("sample", __doc__, **SIZES)
    parser.add_argument("--no-torch", action="store_true", help="leave out PyTorch")
    parser.set_defaults(rounds=2)
    args, others = parser.parse_known_args(argv)
    experiment = synthetic.experiment(args, others)
    reference = None if args.no_torch else synthetic.torch_reference_for(args, others)
    model = synthetic.model(experiment, args.vocab)
    params = synthetic.moved(jax.jit(model.init)(jax.random.key(0)))
    total = args.total or args.length
    window = Windows(length=args.length, stride=min(args.stride, args.length))
    ours = Ours(model, params, args.batch, total, window)
    cases: dict[str, Any] = {"mdlm": ours}
    if reference is not None:
        for name, compiled in (("torch eager", False), ("torch.compile", True)):
            long = total, window.advance
            cases[name] = TorchReference(
                reference, experiment, args.vocab, params, *long, compiled=compiled
            )
    draws: dict[str, Callable[[], Any]] = {name: case.generate for name, case in cases.items()}
    times = harness.alternate(draws, rounds=args.rounds, calls=1)

    positions = args.batch * total
    peak = peak_flops(synthetic.dtype_of(experiment))
    references = [name for name in cases if name != "mdlm"]
    best = min(references, key=lambda name: harness.median(times[name]), default=None)
    rows = []
    for name, seconds in times.items():
        typical, is_ours = harness.median(seconds), name == "mdlm"
        nfe = float(np.mean(cases[name].calls))
        flops = executed(experiment.network, args, positions, nfe, defers_last_block=is_ours)
        rows.append({
            "case": name,
            "tokens/s": positions / typical,
            "s/batch": typical,
            "IQR s": harness.spread(seconds),
            "NFE": nfe,
            "ms/call": 1e3 * typical / nfe,
            "executed TFLOP/s": flops / typical / 1e12,
            "MFU %": harness.utilisation(flops / typical, peak),
            "peak MiB": harness.mebibytes(ours.built.peak_bytes) if is_ours else None,
            "compile s": cases[name].compile_seconds,
            "x torch": harness.ratio(times[best], seconds) if best else None,
            "seconds": seconds,
        })  # fmt: skip
    sizes = {name: getattr(args, name) for name in SIZES if name != "dropout"}
    told = " ".join(f"{name} {value}" for name, value in sizes.items())
    title = (
        f"Generation: {told} {' '.join(others)}\n{harness.peak_in_words(peak)};"
        " each case samples the same distribution"
    )
    return harness.report(
        title, rows, args.json, sizes=sizes, settings=list(others), peak_flops=peak.flops,
        peak_source=peak.source, others=times.others,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
