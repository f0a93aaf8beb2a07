"""Distance of caches from a known distribution, by how often they read everything.

    python -m benchmarks.oracle_caches                 # a table, and docs/oracle-caches.png
    python -m benchmarks.oracle_caches --rows 4000 --train-steps 3000

A small transformer learns the hidden Markov model of `mdlm.evals.oracles` from rows drawn from it.
Then samplers draw rows with it, without a cache and with each cache. Distances are total variations
of neighbouring pairs of tokens: to the distribution itself, and to the rows of no cache. The floor
is the distance of the same number of rows drawn from the distribution. Passes are what was read, in
passes over whole rows.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from benchmarks.caches import Watched, read_by
from mdlm.config.component_text import from_text, to_text
from mdlm.diffusion import Diffusion
from mdlm.evals.oracles import HiddenMarkov
from mdlm.keys import by_row
from mdlm.models import Decoder
from mdlm.models.network import denoiser, init
from mdlm.objectives import Nelbo
from mdlm.parameterizations import Subs
from mdlm.processes import Masked
from mdlm.samplers import Cache, FixedCount, Parallel
from mdlm.samplers.caches.partial import Partial
from mdlm.samplers.loop import generate
from mdlm.types import ArrayTree, Batch, Vocab

PICTURE = Path("docs/oracle-caches.png")
ORACLE = HiddenMarkov()
NETWORK = Decoder(width=64, depth=3, heads=4, dtype="float32")
VOCAB = Vocab(size=ORACLE.symbols + 1, mask_id=ORACLE.symbols)
CACHES = (
    "Prefix()",
    "Dual()",
    "Delayed()",
    "FreeCache()",
    "ReCAP(local=4)",
    "D2Cache(masks=4, sigma=4.0)",
)
REFRESH = (None, 4)


def diffusion(params: ArrayTree) -> Diffusion:
    """The network as a model of the distribution."""
    return Diffusion(
        process=Masked().with_vocab(VOCAB),
        parameterization=Subs().with_vocab(VOCAB),
        denoise=denoiser(NETWORK, VOCAB.size, params),
    )


def trained(steps: int, rows: int = 128) -> ArrayTree:
    """The parameters after `steps` steps of Adam, each on rows drawn anew."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def step(params: Any, state: Any, key: Any, tokens: Any) -> Any:
        batch = Batch(
            tokens=tokens,
            loss_mask=jnp.ones(tokens.shape, bool),
            row=jnp.arange(rows),
            rows=jnp.asarray(rows),
        )
        loss = lambda params: Nelbo()(key, batch, diffusion(params)).total / tokens.size
        value, slope = jax.value_and_grad(loss)(params)
        update, state = optimizer.update(slope, state)
        return optax.apply_updates(params, update), state, value

    params = jax.jit(lambda key: init(NETWORK, key, VOCAB.size))(jax.random.key(0))
    state = optimizer.init(params)
    for i in range(steps):
        key = jax.random.fold_in(jax.random.key(1), i)
        params, state, value = step(params, state, key, ORACLE.draw(rows, seed=i))
        if (i + 1) % 250 == 0:
            print(f"step {i + 1} of {steps}: {float(value):.3f} nats per token", flush=True)
    return params


def sampled(params: ArrayTree, cache: Cache | None, rows: int) -> tuple[np.ndarray, float]:
    """Rows, one token of each a call, in random order; and passes per token."""
    seen = Watched()
    # The order follows from the keys alone; another would be decided by ties of the last bits.
    sampler = Parallel(order="random", rule=FixedCount(), block_size=8, cache=cache)

    @jax.jit
    def draw(params: ArrayTree, keys: Any, tokens: Any, is_fixed: Any) -> Any:
        whole = diffusion(params)
        watched = replace(whole, denoise=read_by(whole.denoise, seen.read))
        return generate(keys, tokens, is_fixed, sampler=sampler, diffusion=watched)

    keys = by_row(jax.random.key(2), jnp.arange(rows))
    nothing = np.zeros((rows, ORACLE.length), np.int32)
    tokens = np.asarray(draw(params, keys, nothing, nothing.astype(bool)).tokens)
    jax.effects_barrier()
    return tokens, seen.positions / tokens.size / ORACLE.length


def run(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prints the table; returns its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.oracle_caches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=2000, help="rows of each (default: 2000)")
    parser.add_argument("--train-steps", type=int, default=2000, help="(default: 2000)")
    parser.add_argument("--caches", nargs="+", metavar="TEXT", help="measure these only; no plot")
    args = parser.parse_args(argv)
    chosen = [from_text(text, Partial) for text in args.caches or CACHES]
    if not args.caches:
        chosen = [replace(cache, refresh=often) for cache in chosen for often in REFRESH]
    caches = {to_text(cache): cache for cache in chosen}
    params = trained(args.train_steps)
    due, _ = sampled(params, None, args.rows)
    floor = ORACLE.distance(ORACLE.draw(args.rows, seed=0))
    print(f"\n{args.rows:,} rows of the distribution itself are {floor:.4f} off\n")
    print("| cache | passes | to the distribution | to no cache |\n|---|---|---|---|")
    found = []
    for name, cache in ({"none": None} | caches).items():
        tokens, passes = sampled(params, cache, args.rows)
        apart = 0.5 * float(np.abs(ORACLE.frequencies(tokens) - ORACLE.frequencies(due)).sum())
        row = {
            "cache": name,
            "passes": passes,
            "distribution": ORACLE.distance(tokens),
            "no cache": apart,
        }
        found.append(row)
        print(f"| `{name}` | {passes:.3f} | {row['distribution']:.4f} | {apart:.4f} |", flush=True)
    if not args.caches:
        plot(found, floor)
    return found


def plot(rows: list[dict[str, Any]], floor: float) -> None:
    """Draws the distance of each cache over what it reads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for pattern, marker in zip(CACHES, "osD^vP", strict=True):
        kind = pattern.split("(")[0]
        own = sorted((r["passes"], r["distribution"]) for r in rows if r["cache"].startswith(kind))
        axes.plot(*np.array(own).T, marker=marker, markersize=4, label=kind)
    axes.axhline(
        rows[0]["distribution"], color="black", linestyle="--", linewidth=1, label="no cache"
    )
    axes.axhline(floor, color="grey", linestyle=":", label="rows of the distribution itself")
    axes.set(xlabel="passes over whole rows, by token written", ylabel="total variation")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(PICTURE, dpi=120)
    print(f"\n({PICTURE})")


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
