"""Compares the caches of sampling on one run: speed, and what the approximate ones change.

    python -m benchmarks.caches runs/quickstart --new 96 --block-size 32
    python -m benchmarks.caches RUN --caches "Dual(refresh=4)" --plot caches.png

The same texts are continued with each cache, the likeliest token first (temperature 0). The first
row is without a cache.

    tokens/s     of a batch, compilation aside; "times" is the median ratio to no cache, of rounds
                 in which all take turns
    passes       what was read, in passes over whole rows, by token written
    FLOPs        of the matmuls of the blocks and the head, by token written
    same tokens  share of the new tokens that are those without a cache
    KL           of the distributions from which tokens were drawn, from those of a pass that reads
                 the whole row as it is: mean and largest, in nats. Runs whose network knows the
                 time have none
    NLL          of the texts in nats per token, by the run's own bound
    entropy      unigram entropy of the new tokens, in nats
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from mdlm.config.component_text import from_text, to_text
from mdlm.data.mixture import other_data
from mdlm.evals.generated.statistics import entropy
from mdlm.experiment.model import Model
from mdlm.generation.programs import within_reach
from mdlm.generation.windows import Windows, window_of
from mdlm.keys import by_row
from mdlm.run import Run, load
from mdlm.samplers import Cache, Parallel, ParallelBlocks, Sampler, Threshold
from mdlm.samplers.loop import Loop, generate
from mdlm.types import ArrayTree, Batch, Denoise, NetInput

WHOLE = (
    "Prefix()",
    "Dual()",
    "Dual(refresh=4)",
    "Delayed()",
    "FreeCache(window=8)",
    "ReCAP()",
    "D2Cache()",
)
BLOCKS = ("FinishedBlocks()",)


@dataclass
class Watched:
    """What the calls of one generation read, and how far their distributions were off."""

    positions: int = 0
    kl: dict[tuple[bytes, int], float] = field(default_factory=dict)

    def read(self, positions: Any) -> None:
        self.positions += int(positions)

    def drawn(self, tokens: Any, at: Any, is_open: Any, kl: Any) -> None:
        row = np.asarray(tokens).tobytes()
        for place, value in zip(at[is_open].tolist(), kl[is_open].tolist(), strict=True):
            self.kl[row, place] = value  # the last of a chunk are repeated


def read_by(denoise: Denoise, read: Callable[[Any], None], halves: int = 1) -> Denoise:
    """Returns the network, which tells `read` how many positions each call reads. A whole row has
    `halves` times as many as its tokens."""

    def told(inputs: NetInput, *, key: Any = None) -> Any:
        positions = jnp.asarray(inputs.tokens.size * halves)
        if inputs.reading is not None:
            positions = (inputs.reading.at < inputs.tokens.shape[1] * halves).sum()
        jax.debug.callback(read, positions)
        return denoise(inputs, key=key)

    return told


class Case:
    """Generation of a batch with one cache."""

    def __init__(self, model: Model, params: ArrayTree, sampler: Sampler, inputs: tuple[Any, ...]):
        self.model, self.params, self.sampler, self.inputs = model, params, sampler, inputs

        def draw(params, *row):
            return generate(*row, sampler=sampler, diffusion=model.diffusion(params))

        self._built = harness.build(draw, params, *inputs)

    def generate(self) -> Any:
        return self._built.call(self.params, *self.inputs)

    def watched(self) -> Watched:
        """Generates once more, call by call, and compares each with a pass over the whole row."""
        seen, model = Watched(), self.model
        is_timed = model.experiment.time_condition != "none"

        def watching(params) -> Loop:
            diffusion = model.diffusion(params)
            plain = diffusion.denoise

            def hook(log_p, at, tokens):
                is_open = (tokens == model.vocab.mask_id).reshape(-1)[at]
                clean = tokens if model.experiment.network.attends == "blocks" else None
                fresh = plain(NetInput(tokens=tokens, clean=clean)).logits(at)
                mask_id = jnp.full_like(at, model.vocab.mask_id)
                due = model.parameterization.log_p0(fresh, mask_id, None)
                off = jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * (log_p - due), 0.0).sum(-1)
                jax.debug.callback(seen.drawn, tokens, at, is_open, off)
                return log_p

            sampler = self.sampler if is_timed else replace(self.sampler, hook=hook)
            counted = read_by(plain, seen.read, halves(model))
            return Loop(sampler=sampler, diffusion=replace(diffusion, denoise=counted))

        begin = jax.jit(lambda params, *row: watching(params).begin(*row))
        advance = jax.jit(lambda params, state: watching(params).advance(state))
        state = begin(self.params, *self.inputs)
        while not bool(state.done.all()):
            state = advance(self.params, state)
        jax.effects_barrier()
        return seen


def bound(model: Model, passes: int) -> Callable[[ArrayTree, Any, Any], float]:
    """The run's bound on the NLL of texts, in nats per token that was written."""

    @jax.jit
    def terms(params, tokens, is_new, key):
        rows = tokens.shape[0]
        batch = Batch(
            tokens=tokens,
            loss_mask=is_new,
            row=jnp.arange(rows),
            rows=jnp.asarray(rows),
        )
        found = model.evaluate(params, key, batch)
        return found.bound.sum() / found.count.sum()

    def mean(params, tokens, is_new) -> float:
        keys = jax.random.split(jax.random.key(1), passes)
        return float(np.mean([terms(params, tokens, is_new, key) for key in keys]))

    return mean


def inputs_of(
    windows: Windows, prompts: np.ndarray, new: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that end in `new` open positions; which positions are fixed; which are new."""
    length = windows.length
    tokens = np.array(prompts[:, :length], np.int32)
    end = windows.text.stop
    is_fixed = np.ones(tokens.shape, bool)
    is_fixed[:, max(windows.text.start, end - new) : end] = False
    return tokens, is_fixed, ~is_fixed


def run(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prints the table; returns its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.caches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", help="a run folder")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="texts (default: those of RUN)")
    parser.add_argument("--num", type=int, default=4, help="texts (default: %(default)s)")
    parser.add_argument("--new", type=int, default=96, help="new tokens of a text")
    parser.add_argument("--block-size", type=int, default=32, help="for networks without blocks")
    parser.add_argument("--tau", type=float, default=0.9, help="threshold of the decoder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--caches", nargs="+", metavar="TEXT", help="measure these only")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw speed against KL (PNG)")
    args = parser.parse_args(argv)
    opened = load(args.run_folder)
    network = opened.experiment.network
    in_blocks = network.attends == "blocks"
    rule: Any = dict(rule=Threshold(tau=args.tau), temperature=0.0)
    plain: Sampler = (
        ParallelBlocks(block_size=getattr(network, "block_size", 1), cache=None, **rule)
        if in_blocks
        else Parallel(block_size=args.block_size, **rule)
    )
    texts = args.caches or (BLOCKS if in_blocks else WHOLE)
    samplers = {"none": plain}
    samplers |= {
        to_text(cache): replace(plain, cache=cache)
        for cache in (from_text(text, Cache) for text in texts)
    }
    rows = measured(opened, samplers, prompts(opened, args.data)[: args.num], args)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    if args.plot:
        draw(rows, args.plot)
    return rows


def prompts(opened: Run, files: Sequence[str] | None) -> np.ndarray:
    """Returns rows of tokens of the validation split, or of other files."""
    data = opened.dataset
    if files:
        text = other_data(opened.experiment.data, tuple(files), "valid")
        data = text.load(opened.folder.data)
    return data.valid.rows.all().tokens


def measured(
    opened: Run, samplers: Mapping[str, Sampler], rows: np.ndarray, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Prints and returns the rows of the table."""
    model = opened.model
    tokens, is_fixed, is_new = inputs_of(
        window_of(opened.experiment.data.packing, model), rows, args.new
    )
    inputs = (by_row(jax.random.key(0), jnp.arange(len(rows))), tokens, is_fixed)
    params = within_reach(opened.params)
    cases = {name: Case(model, params, sampler, inputs) for name, sampler in samplers.items()}
    draws: dict[str, Callable[[], Any]] = {
        name: lambda case=case: jax.block_until_ready(case.generate())
        for name, case in cases.items()
    }
    times = harness.alternate(draws, rounds=args.rounds, calls=1)
    nll, count = bound(model, 8), int(is_new.sum())
    due, table = np.asarray(cases["none"].generate().tokens), []
    print("| cache | samples | tokens/s | times | passes | MFLOP | same tokens |", end="")
    print(" KL | largest | NLL | entropy |\n|" + "---|" * 11)
    for name, case in cases.items():
        found, seen = np.asarray(case.generate().tokens), case.watched()
        off = np.array(list(seen.kl.values()) or [np.nan])
        row = {
            "cache": name,
            "exact": case.sampler.cache is None or case.sampler.cache.exact,
            "tokens/s": count / float(np.median(times[name])),
            "times": float(np.median(np.array(times["none"]) / np.array(times[name]))),
            "passes": seen.positions / (tokens.size * halves(model)) / count * len(rows),
            "MFLOP": flops(model, seen, tokens.shape, len(seen.kl) or count) / count / 1e6,
            "same": float((found == due)[is_new].mean()),
            "KL": max(float(off.mean()), 0.0),  # rounding may make it negative
            "largest": float(off.max()),
            "NLL": nll(params, found, is_new),
            "entropy": entropy(found[is_new]),
        }
        table.append(row)
        kind = "exact" if row["exact"] else "approximate"
        print(
            f"| `{name}` | {kind} | {row['tokens/s']:,.0f} | {row['times']:.2f} |"
            f" {row['passes']:.3f} | {row['MFLOP']:,.1f} | {row['same']:.1%} | {row['KL']:.4f} |"
            f" {row['largest']:.3f} | {row['NLL']:.3f} | {row['entropy']:.3f} |",
            flush=True,
        )
    return table


def flops(model: Model, seen: Watched, shape: tuple[int, int], drawn: int) -> float:
    """FLOPs of the matmuls over the positions read, each attending to a row, and of the head."""
    network, (_, length) = model.experiment.network, shape
    whole = network.flops(1, length, 0, model.columns)
    read = seen.positions / (length * halves(model))
    return read * whole + network.flops(0, length, drawn, model.columns)


def halves(model: Model) -> int:
    """How often the network reads a row in a pass: [tokens ; clean] is twice."""
    return 2 if model.experiment.network.attends == "blocks" else 1


def draw(rows: list[dict[str, Any]], file: str) -> None:
    """Draws the speed-up of each cache against the mean KL of its distributions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, row in enumerate(rows):
        off = max(row["KL"], 1e-6) if np.isfinite(row["KL"]) else 1 - row["same"]
        marker = "o" if row["exact"] else "sD^vPX*<>d"[index % 10]
        axes.plot(off, row["times"], marker, linestyle="", label=row["cache"])
    axes.set_xscale("symlog", linthresh=1e-4)
    axes.set_xlabel("mean KL from a full pass, nats")
    axes.set_ylabel("speed, in times of no cache")
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
