"""Tokens per second of generation, and of the published cached sampler on the twin.

    python -m benchmarks.sample                           # 8 sequences of 128, 128 steps
    python -m benchmarks.sample --batch 1 --steps 256
    python -m benchmarks.sample --no-twin                 # without PyTorch

`mdlm.samplers.base.generate` with `Ancestral`, as `mdlm sample` runs it, against the published
"ddpm_cache" on the twin, whose network has the same parameters; both sample the same law, with
randomness of their own. They take turns, one generation each. NFE is the mean number of network
calls. "executed TFLOP/s" counts the products that each must execute: its calls of the blocks, and
the head at the positions that are written (ours) or at all positions of every call (the twin's).
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, setting
from mdlm.experiment import Experiment, Model
from mdlm.hardware import peak_flops
from mdlm.samplers.base import generate
from mdlm.samplers.state import Samples
from mdlm.types import ArrayTree

SIZES = {**setting.SIZES, "batch": 8, "steps": 128}


class Ours:
    """Generation of a batch, again and again, each time from another key."""

    def __init__(self, model: Model, params: ArrayTree, batch: int, length: int):
        def draw(params, key, number) -> Samples:
            return generate(
                jax.random.split(jax.random.fold_in(key, number), batch),
                jnp.zeros((batch, length), jnp.int32),
                jnp.zeros((batch, length), bool),
                sampler=model.experiment.sampler,
                process=model.process,
                parameterization=model.parameterization,
                denoise=model.denoise(params),
            )

        self.params, self.key, self.number = jax.device_put(params), jax.random.key(0), 0
        self.built = harness.build(draw, self.params, self.key, jnp.asarray(0))
        self.compile_seconds = self.built.compile_seconds
        self.calls: list[jax.Array] = []

    def generate(self) -> jax.Array:
        """Tokens `[b l]`."""
        self.number += 1
        samples = self.built.call(self.params, self.key, jnp.asarray(self.number))
        self.calls.append(samples.nfe)
        return samples.tokens


class Twin:
    """The same on the twin."""

    def __init__(
        self,
        twin: ModuleType,
        experiment: Experiment,
        columns: int,
        params: ArrayTree,
        *,
        compiled: bool,
    ):
        import torch

        loaded = twin.load(experiment.network, params["network"], columns, columns - 1).eval()
        logits = torch.compile(loaded, fullgraph=True) if compiled else loaded
        sizes = (columns - 1, experiment.train.batch_size, experiment.data.packing.length)
        steps = getattr(experiment.sampler, "steps", 0)
        self.calls: list[int] = []

        def draw(steps: int) -> Any:
            return twin.generate(logits, *sizes, steps)

        self.compile_seconds = harness.first_call("the twin", lambda: draw(1))
        self._draw = lambda: draw(steps)

    def generate(self) -> Any:
        """Tokens `[b l]`."""
        tokens, calls = self._draw()
        self.calls.append(calls)
        return tokens


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The benchmark; returns what it wrote."""
    parser = harness.parser("sample", __doc__, **SIZES)
    parser.add_argument("--no-twin", action="store_true", help="measure ours alone")
    parser.set_defaults(rounds=2)
    args, others = parser.parse_known_args(argv)
    experiment = setting.experiment(args, others)
    twin = None if args.no_twin else setting.twin_for(args, others)
    model = setting.model(experiment, args.vocab)
    params = setting.moved(jax.jit(model.init)(jax.random.key(0)))
    ours = Ours(model, params, args.batch, args.length)
    cases: dict[str, Any] = {"mdlm": ours}
    if twin is not None:
        for name, compiled in (("torch eager", False), ("torch.compile", True)):
            cases[name] = Twin(twin, experiment, args.vocab, params, compiled=compiled)
    draws: dict[str, Callable[[], Any]] = {name: case.generate for name, case in cases.items()}
    times = harness.alternate(draws, rounds=args.rounds, calls=1)

    positions = args.batch * args.length
    peak = peak_flops(setting.dtype_of(experiment))
    twins = [name for name in cases if name != "mdlm"]
    best = min(twins, key=lambda name: harness.median(times[name]), default=None)
    rows = []
    for name, seconds in times.items():
        typical, is_ours = harness.median(seconds), name == "mdlm"
        nfe = float(np.mean(jax.device_get(cases[name].calls)))
        scored = positions / nfe if is_ours else positions
        flops = nfe * experiment.network.flops(args.batch, args.length, scored, args.vocab)
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
            "x twin": harness.ratio(times[best], seconds) if best else None,
            "seconds": seconds,
        })  # fmt: skip
    sizes = {name: getattr(args, name) for name in SIZES if name != "dropout"}
    told = " ".join(f"{name} {value}" for name, value in sizes.items())
    title = (
        f"Generation: {told} {' '.join(others)}\n{harness.peak_in_words(peak)};"
        " each row draws the same law"
    )
    return harness.report(
        title, rows, args.json, sizes=sizes, settings=list(others), peak_flops=peak.flops,
        peak_source=peak.source, others=times.others,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
