"""Time and memory of attention, forward and backward, by every implementation that runs here.

    python -m benchmarks.attention                        # 16 x 128, 4 heads of 64
    python -m benchmarks.attention --batch 8 --length 1024 --heads 12 --dtype bfloat16
    python -m benchmarks.attention --causal --no-torch

This package's implementations are compared with `jax.nn.dot_product_attention` and PyTorch's
`scaled_dot_product_attention`. All take queries, keys, values and the cotangent as `[b l h d]` and
return the output and three gradients; the title has their greatest differences from "mdlm xla".

The FLOPs are those of six matmuls over all pairs of positions, two forward and four backward,
whatever a kernel skips (the pairs of a causal mask) or computes twice (the attention logits).
"x jax.nn" is the median, over rounds, of the speed relative to `jax.nn.dot_product_attention`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from mdlm.errors import InputError
from mdlm.models.attention.dispatch import attention, obstacle, platform
from mdlm.models.attention.mask import AttentionMask
from mdlm.models.layers import compute_dtype
from mdlm.profiling.peak import peak_flops

SIZES = {"batch": 16, "length": 128, "heads": 4, "head_width": 64, "dtype": "auto"}
PLAIN = "jax.nn xla"


def implementations(q: jax.Array, mask: AttentionMask) -> dict[str, Callable[..., jax.Array]]:
    """The implementations that run here, by name: functions of q, k and v."""
    found: dict[str, Callable[..., jax.Array]] = {}
    for name in ("xla", "cudnn", "splash"):
        if obstacle(name, q, mask) is None:
            found[f"mdlm {name}"] = functools.partial(attention, mask=mask, implementation=name)
    theirs = functools.partial(jax.nn.dot_product_attention, is_causal=mask.ahead == 0)
    found[PLAIN] = functools.partial(theirs, implementation="xla")
    if "mdlm cudnn" in found:
        found["jax.nn cudnn"] = functools.partial(theirs, implementation="cudnn")
    return found


def with_gradients(attend: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """(q, k, v, cotangent) -> output and the gradients in q, k and v."""

    def both(q, k, v, g):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    return both


def in_torch(arrays: Sequence[jax.Array], causal: bool) -> Callable[[], Any]:
    """The same in PyTorch, on the same device if it finds one. The call waits for the result."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"PyTorch is missing ({error}): pip install '.[bench]', or give --no-torch"
        ) from error
    device = "cuda" if platform() == "gpu" and torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, arrays[0].dtype.name)
    q, k, v, g = (
        torch.tensor(np.asarray(x, np.float32)).to(device, dtype).requires_grad_(i < 3)
        for i, x in enumerate(arrays)
    )

    def both():
        attend = torch.nn.functional.scaled_dot_product_attention
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal)
        out = out.transpose(1, 2)
        gradients = torch.autograd.grad(out, (q, k, v), g)
        if device == "cuda":
            torch.cuda.synchronize()
        return out, *gradients

    return both


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns the report."""
    parser = harness.parser("attention", __doc__, **SIZES)
    parser.add_argument("--causal", action="store_true", help="causal attention")
    parser.add_argument("--no-torch", action="store_true", help="leave out PyTorch")
    args = parser.parse_args(argv)
    b, l, h, d = args.batch, args.length, args.heads, args.head_width
    if min(b, l, h, d) < 1:
        raise InputError(
            f"--batch {b} --length {l} --heads {h} --head-width {d}: each must be at least 1"
        )
    dtype = compute_dtype(args.dtype)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(b, l, h, d)), dtype) for _ in range(4)]

    built = {
        name: harness.build(with_gradients(attend), *arrays)
        for name, attend in implementations(
            arrays[0], AttentionMask(ahead=0 if args.causal else None)
        ).items()
    }
    cases: dict[str, Callable[[], Any]] = {
        name: functools.partial(one.call, *arrays) for name, one in built.items()
    }
    if not args.no_torch:
        cases["torch"] = in_torch(arrays, args.causal)
    difference = compare(cases)
    times = harness.alternate(cases, rounds=args.rounds, seconds=args.seconds)

    flops = 6 * 2 * b * h * l * l * d
    peak = peak_flops(dtype.name)
    rows = []
    for name, seconds in times.items():
        typical, one = harness.median(seconds), built.get(name)
        rows.append({
            "case": name,
            "tokens/s": b * l / typical,
            "ms": 1e3 * typical,
            "IQR ms": 1e3 * harness.spread(seconds),
            "x jax.nn": harness.ratio(times[PLAIN], seconds),
            "model TFLOP/s": flops / typical / 1e12,
            "MFU %": harness.utilisation(flops / typical, peak),
            "temp MiB": one and harness.mebibytes(one.temp_bytes),
            "peak MiB": one and harness.mebibytes(one.peak_bytes),
            "compile s": one and one.compile_seconds,
            "seconds": seconds,
        })  # fmt: skip
    told = ", ".join(f"{name} {value:.1e}" for name, value in difference.items())
    title = (
        f"Attention with gradients: {b} x {l}, {h} heads of {d}, {dtype.name},"
        f" {'causal' if args.causal else 'full'}\n{harness.peak_in_words(peak)}; greatest"
        f" difference from mdlm xla, relative to the greatest entry: {told}"
    )
    sizes = {name: getattr(args, name) for name in (*SIZES, "causal")}
    return harness.report(
        title, rows, args.json, sizes=sizes, flops=flops, difference=difference,
        peak_flops=peak.flops, peak_source=peak.source,
    )  # fmt: skip


def compare(cases: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Greatest differences of output and gradients from those of the first case."""

    def arrays(case) -> list[np.ndarray]:
        found = (x if isinstance(x, jax.Array) else x.detach().float().cpu() for x in case())
        return [np.asarray(x, np.float32) for x in found]

    first, *others = cases
    want = arrays(cases[first])
    return {
        name: max(
            float(np.abs(x - y).max() / np.abs(y).max())
            for x, y in zip(arrays(cases[name]), want, strict=True)
        )
        for name in others
    }


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
