"""Time and memory of the loss head: logits, cross-entropy and their gradients.

    python -m benchmarks.loss_head             # 4,096 positions, width 768, vocabulary 50,258
    python -m benchmarks.loss_head --vocab 1024 --width 256 --batch 16 --length 128

`Readout.reduce_rows` against all logits at once (`DenseLogits`), in the cross-entropy that the
objectives use, with gradients in the hidden states, the kernel and the bias. Positions are masked
with probability `--masked`; the others have weight 0, but the dense head computes them too.

"model TFLOP/s" counts the three matmuls at masked positions for both. "x dense" is the speed
relative to the dense head (median over rounds); "of dense" the fraction of its temporary memory.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from mdlm.errors import InputError
from mdlm.models.layers import compute_dtype, matmul
from mdlm.models.readout import Readout
from mdlm.objectives.base import weighted_cross_entropy
from mdlm.parameterizations.subs import Subs
from mdlm.profiling.peak import peak_flops
from mdlm.types import ArrayTree, Batch, DenseLogits, Prediction

SIZES = {
    "batch": 4,
    "length": 1024,
    "width": 768,
    "vocab": 50258,
    "masked": 0.5,
    "dtype": "float32",
    "chunk": 0,
}


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns the report."""
    parser = harness.parser("loss_head", __doc__, **SIZES)
    parser.set_defaults(rounds=3)
    args = parser.parse_args(argv)
    if not 0 < args.masked <= 1:
        raise InputError(f"--masked {args.masked}: must be above 0 and at most 1")
    b, l, d, v = args.batch, args.length, args.width, args.vocab
    dtype = compute_dtype(args.dtype)
    rng = np.random.default_rng(0)
    arrays = {
        "hidden": jnp.asarray(rng.normal(size=(b, l, d)), dtype),
        "kernel": jnp.asarray(rng.normal(size=(d, v)) / np.sqrt(d), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=v), jnp.float32),
    }
    x_0 = jnp.asarray(rng.integers(0, v - 1, (b, l)), jnp.int32)
    is_masked = rng.random((b, l)) < args.masked
    masked = {
        "z_t": jnp.where(is_masked, v - 1, x_0),
        "t": jnp.full((b, 1), args.masked),
        "weight": jnp.asarray(is_masked / args.masked, jnp.float32),
    }
    full = jnp.ones((b, l), bool)
    batch = Batch(tokens=x_0, loss_mask=full, is_valid=full, row=jnp.arange(b), rows=jnp.asarray(b))
    subs = Subs(mask_id=v - 1, vocab_size=v)
    chunk = {"chunk": args.chunk} if args.chunk else {}

    def fused(arrays: ArrayTree) -> Prediction:
        return Readout(arrays["hidden"], arrays["kernel"], arrays["bias"], **chunk)

    def dense(arrays: ArrayTree) -> Prediction:
        kernel = arrays["kernel"].astype(dtype)
        logits = matmul(arrays["hidden"], kernel, jnp.dtype(jnp.float32))
        return DenseLogits(logits + jnp.broadcast_to(arrays["bias"], logits.shape))

    def build(head) -> harness.Built:
        def loss(arrays, batch, masked):
            terms = weighted_cross_entropy(head(arrays), batch, parameterization=subs, **masked)
            return terms.total / terms.count.sum()

        return harness.build(jax.value_and_grad(loss), arrays, batch, masked)

    built = {"mdlm": build(fused), "dense": build(dense)}
    difference = compare(*(b.call(arrays, batch, masked) for b in built.values()))
    times = harness.alternate(
        {name: lambda b=b: b.call(arrays, batch, masked) for name, b in built.items()},
        rounds=args.rounds,
        seconds=args.seconds,
    )

    scored = int(is_masked.sum())
    flops = 6 * scored * d * v
    peak = peak_flops(dtype.name)
    rows = []
    for name, seconds in times.items():
        typical = harness.median(seconds)
        temporary, whole = built[name].temp_bytes, built["dense"].temp_bytes
        rows.append({
            "case": name,
            "tokens/s": b * l / typical,
            "ms": 1e3 * typical,
            "IQR ms": 1e3 * harness.spread(seconds),
            "x dense": harness.ratio(times["dense"], seconds),
            "temp MiB": harness.mebibytes(temporary),
            "of dense": temporary / whole if temporary is not None and whole else None,
            "model TFLOP/s": flops / typical / 1e12,
            "MFU %": harness.utilisation(flops / typical, peak),
            "peak MiB": harness.mebibytes(built[name].peak_bytes),
            "compile s": built[name].compile_seconds,
            "seconds": seconds,
        })  # fmt: skip
    told = ", ".join(f"{name} {value:.1e}" for name, value in difference.items())
    title = (
        f"Loss head with gradients: {b * l:,} positions of width {d}, {scored:,} masked, vocabulary"
        f" {v:,}, {dtype.name}\n{harness.peak_in_words(peak)}; greatest difference from"
        f" dense, relative to the greatest entry: {told}"
    )
    sizes = {name: getattr(args, name) for name in SIZES}
    return harness.report(
        title, rows, args.json, sizes=sizes, scored=scored, flops=flops, difference=difference,
        peak_flops=peak.flops, peak_source=peak.source, others=times.others,
    )  # fmt: skip


def compare(mine: ArrayTree, other: ArrayTree) -> dict[str, float]:
    """Greatest difference of the loss and of each gradient, relative to the greatest entry of
    `other`."""

    def relative(a, b) -> float:
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        return float(np.abs(a - b).max() / np.abs(b).max())

    found = {"loss": relative(mine[0], other[0])}
    return found | {name: relative(mine[1][name], other[1][name]) for name in other[1]}


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
