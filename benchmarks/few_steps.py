"""Quality against network calls, of methods that promise fewer calls, on a known distribution.

    python -m benchmarks.few_steps                        # a table, and docs/few_steps.png
    python -m benchmarks.few_steps --methods plain judged --seeds 1 --rows 500

A small transformer learns the hidden Markov model of `mdlm.evals.oracles`. For each method it then
goes on for the same number of steps with the method's loss (`benchmarks.few_steps_methods`), and
draws rows with 1, 2, 4 .. 32 calls. The control, `plain`, goes on with the bound. `exact` is the
true posterior in place of a network: what remains is the sampler's error, and no loss whose best
answer is the posterior can do better with the same sampler.

Read a row so: `distance` is the total variation of neighbouring pairs of tokens between samples and
distribution; `nll` is the samples' mean negative log-likelihood under the distribution, `h1` and
`h2` the entropies of their tokens and of their pairs given the first token, all in nats per token.
An nll below that of true rows at a lower entropy is a collapse, no gain. A method gains at a number
of calls if its distance is lower than the control's, with the control's best sampler, by more than
two standard errors of the paired differences over seeds. Calls of adaptive samplers are means over
rows; the control's best is interpolated to them.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import few_steps_methods as methods
from benchmarks import harness
from benchmarks.few_steps_methods import Judged, Loss, Nets, Redrawn, judge_of, new_judge
from mdlm.diffusion import Diffusion
from mdlm.errors import InputError
from mdlm.evals.oracles import HiddenMarkov
from mdlm.keys import by_row, of_seed, stream
from mdlm.models import Decoder
from mdlm.models.network import denoiser, init
from mdlm.parameterizations import Subs
from mdlm.processes import Masked
from mdlm.samplers import Editing, EntropyBound, Parallel, PathPlanning, Remask, Sampler, Share
from mdlm.samplers.loop import Loop
from mdlm.schedules import LogLinear
from mdlm.types import ArrayTree, Batch, Vocab

PICTURE = Path("docs/few_steps.png")
ORACLE = HiddenMarkov()
NETWORK = Decoder(width=48, depth=2, heads=4, dtype="float32")
VOCAB = Vocab(size=ORACLE.symbols + 1, mask_id=ORACLE.symbols)
BATCH = 64
CALLS = (1, 2, 4, 8, 16, 32)
ROUNDS = (1 / 8, 1 / 4, 1 / 2)
"""The step of the student in each round of a distillation; other methods have one round."""

METHODS: dict[str, Loss] = {
    "plain": methods.plain,
    "sharpened-0.5": methods.sharpened(0.5),
    "sharpened-2": methods.sharpened(2.0),
    "repaired": methods.repaired(),
    "redrafted": methods.redrafted,
    "judged": methods.judged,
    "stepped": methods.stepped(reverse=False),
    "stepped-reverse": methods.stepped(reverse=True),
    "coupled": methods.coupled,
}
DISTILLED = ("stepped", "stepped-reverse", "coupled")
SAMPLERS: dict[str, tuple[Callable[[Any], Sampler], tuple[float, ...]]] = {
    "random": (lambda n: Parallel(order="random", rule=Share(steps=n)), CALLS),
    "entropy": (lambda n: Parallel(order="entropy", rule=Share(steps=n)), (4, 8, 16)),
    "bound": (lambda n: Parallel(order="entropy", rule=EntropyBound(gamma=n)), (3, 6, 12)),
    "remasked": (lambda n: Remask(steps=n, strategy="rescale", eta=0.1), CALLS[2:]),
    "rewritten": (lambda n: Judged(steps=n), CALLS[2:]),
    "judged": (lambda n: Judged(steps=n), CALLS[1:]),
    "planned": (lambda n: PathPlanning(steps=n), (8,)),
    "edited": (lambda n: Editing(temperature=1.0, write_above=0.3, edit_above=n), (0.6,)),
    "redrawn": (lambda n: redrawn(n), CALLS[1:]),
}
"""Samplers, and what each is asked for: calls, or a setting that decides them."""
PLAIN = ("random", "entropy", "bound")
OWN = {
    "exact": ("random",),
    "plain": (*PLAIN, "remasked", "rewritten", "planned", "edited"),
    "repaired": ("random", "planned", "edited", "redrawn"),
    "redrafted": ("random", "planned", "edited", "redrawn"),
    "judged": ("random", "judged"),
    "stepped": ("random",),
    "stepped-reverse": ("random",),
    "coupled": ("random",),
}


def redrawn(calls: int) -> Redrawn:
    """A quarter of the calls, at least one, draws all tokens again."""
    again = max(calls // 4, 1)
    rule = Share(steps=calls - again)
    return Redrawn(order="random", rule=rule, writes=calls - again, redraws=again)


SHOWN = (
    ("exact", "random"),
    ("plain", "random"),
    ("sharpened-0.5", "random"),
    ("sharpened-2", "random"),
    ("repaired", "redrawn"),
    ("redrafted", "redrawn"),
    ("judged", "judged"),
    ("stepped", "random"),
    ("stepped-reverse", "random"),
    ("coupled", "random"),
)
"""The curves of the picture."""


def diffusion(params: ArrayTree) -> Diffusion:
    """The network as a model of the distribution; the exact posterior without parameters."""
    exact = ORACLE.denoise
    return Diffusion(
        process=Masked(schedule=LogLinear(eps=0.0)).with_vocab(VOCAB),
        parameterization=Subs().with_vocab(VOCAB),
        denoise=exact if params is None else denoiser(NETWORK, VOCAB.size, params),
    )


def trained(
    loss: Loss, params: ArrayTree, steps: int, seed: int, rate: float, gaps: Sequence[float] = (0,)
) -> tuple[ArrayTree, float]:
    """Returns the parameters after `steps` steps of Adam in equal rounds, each on rows drawn anew,
    and the seconds of a step. Each round has its gap, and its start as teacher."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params: Any, teacher: Any, state: Any, key: Any, tokens: Any, gap: Any) -> Any:
        batch = Batch(
            tokens=tokens,
            loss_mask=jnp.ones(tokens.shape, bool),
            row=jnp.arange(BATCH),
            rows=jnp.asarray(BATCH),
        )

        def value(params: Any) -> Any:
            nets = Nets(
                student=diffusion(params["network"]),
                teacher=diffusion(teacher["network"]),
                judge=judge_of(params["judge"]),
                gap=gap,
            )
            return loss(key, batch, nets)

        slope = jax.grad(value)(params)
        update, state = optimizer.update(slope, state)
        return optax.apply_updates(params, update), state

    state, teacher, seconds = optimizer.init(params), params, []
    for i in range(steps):
        number = i * len(gaps) // steps
        if number != (i - 1) * len(gaps) // steps:
            teacher = params
        key = jax.random.fold_in(stream(of_seed(seed), "train"), i)
        tokens = ORACLE.draw(BATCH, seed=1_000_000 * (seed + 1) + i)
        start = time.perf_counter()
        params, state = step(params, teacher, state, key, tokens, jnp.asarray(gaps[number]))
        jax.block_until_ready(params)
        seconds.append(time.perf_counter() - start)
    return params, float(np.median(seconds))


def begun(steps: int, seed: int) -> ArrayTree:
    """Returns the network that all methods of a seed begin from."""
    key = stream(of_seed(seed), "init")
    network = jax.jit(lambda key: init(NETWORK, key, VOCAB.size))(key)
    params = {"network": network, "judge": new_judge(key, NETWORK.width)}
    return trained(methods.plain, params, steps, 100 + seed, 2e-3)[0]


@cache
def drawing(name: str, calls: float) -> Callable[..., Any]:
    """The compiled function that draws rows with a sampler, and the calls that each row took."""

    @jax.jit
    def draw(params: ArrayTree, keys: Any) -> Any:
        sampler = SAMPLERS[name][0](calls)
        if name == "judged" and isinstance(sampler, Judged):
            sampler = replace(sampler, judge=judge_of(params["judge"]))
        loop = Loop(sampler=sampler, diffusion=diffusion(params and params["network"]))
        nothing = jnp.zeros((len(keys), ORACLE.length), jnp.int32)
        state = loop.begin(keys, nothing, nothing.astype(bool))

        def advance(carry: Any) -> Any:
            state, taken = carry
            return loop.advance(state), taken + ~state.done

        carry = state, jnp.zeros(len(keys), jnp.int32)
        state, taken = jax.lax.while_loop(lambda carry: ~carry[0].done.all(), advance, carry)
        return loop.finish(state).tokens, taken

    return draw


def measured(tokens: np.ndarray) -> dict[str, float]:
    """Distance, likelihood and entropies of rows."""
    pairs = ORACLE.frequencies(tokens)
    entropy = lambda p: -float((p * np.log(np.maximum(p, 1e-30))).sum())
    return {
        "distance": ORACLE.distance(tokens),
        "nll": -float(ORACLE.log_p(tokens).mean()) / ORACLE.length,
        "h1": entropy(pairs.sum(1)),
        "h2": entropy(pairs) - entropy(pairs.sum(1)),
    }


def sampled(params: ArrayTree | None, method: str, rows: int, seed: int) -> list[dict[str, Any]]:
    """Returns what rows of a network are measured as, by sampler and calls."""
    found = []
    for sampler in OWN.get(method, PLAIN):
        for calls in SAMPLERS[sampler][1]:
            keys = by_row(stream(of_seed(seed), "draw"), jnp.arange(rows))
            tokens, taken = jax.device_get(drawing(sampler, calls)(params, keys))
            row = {"method": method, "sampler": sampler, "asked": calls, "seed": seed}
            found.append({**row, "calls": float(taken.mean()), **measured(tokens)})
    return found


def best_of_control(rows: list[dict[str, Any]], seed: int, calls: float) -> float:
    """The least distance of the control's samplers at so many calls, each interpolated linearly in
    the logarithm of the calls."""
    found = []
    for sampler in OWN["plain"]:
        kind = ("plain", sampler, seed)
        mine = [r for r in rows if (r["method"], r["sampler"], r["seed"]) == kind]
        if not mine:
            continue
        x, y = np.array(sorted((r["calls"], r["distance"]) for r in mine)).T
        if x[0] <= calls * 1.001:  # no sampler is credited with fewer calls than it takes
            found.append(float(np.interp(np.log(calls), np.log(x), y)))
    return min(found, default=float("nan"))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, with standard errors, and the gain over the control."""
    kinds = dict.fromkeys((r["method"], r["sampler"], r["asked"]) for r in rows)
    table = []
    for kind in kinds:
        own = [r for r in rows if (r["method"], r["sampler"], r["asked"]) == kind]
        line: dict[str, Any] = {"method": kind[0], "sampler": kind[1], "asked": kind[2]}
        for name in ("calls", "distance", "nll", "h1", "h2"):
            values = [r[name] for r in own]
            line[name], line[name + " se"] = float(np.mean(values)), error(values)
        if kind[0] not in ("plain", "true rows"):
            gains = [best_of_control(rows, r["seed"], r["calls"]) - r["distance"] for r in own]
            line["gain"], line["gain se"] = float(np.mean(gains)), error(gains)
        table.append(line)
    return table


def error(values: Sequence[float]) -> float:
    """The standard error of a mean; 0 of one value."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def run(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prints the table; returns its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = "which to train (default: all, and a picture)"
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=names)
    parser.add_argument("--rows", type=int, default=600, help="rows drawn (default: 600)")
    parser.add_argument("--seeds", type=int, default=3, help="base networks (default: 3)")
    parser.add_argument("--base-steps", type=int, default=2000, help="(default: 2000)")
    parser.add_argument("--steps", type=int, default=240, help="of each method (default: 240)")
    parser.add_argument(
        "--json",
        default="runs/benchmarks/few_steps.json",
        metavar="FILE",
        help="what was measured; what is there is not measured again (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if unknown := [name for name in args.methods if name not in METHODS]:
        raise InputError(f"--methods {unknown[0]}: choose from {', '.join(METHODS)}")
    out = Path(args.json)
    rows = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    for seed in range(args.seeds):
        known = {r["method"] for r in rows if r["seed"] == seed}
        if "true rows" not in known:
            true = {"method": "true rows", "sampler": "", "asked": 0, "seed": seed, "calls": 0.0}
            rows.append({**true, **measured(ORACLE.draw(args.rows, seed=seed))})
            rows += sampled(None, "exact", args.rows, seed)
        missing = [name for name in args.methods if name not in known]
        base = begun(args.base_steps, seed) if missing else None
        for name in missing:
            gaps = ROUNDS if name in DISTILLED else (0.0,)
            params, seconds = trained(METHODS[name], base, args.steps, seed, 1e-3, gaps)
            rows += sampled(params, name, args.rows, seed)
            print(f"seed {seed}: {name}, {seconds * 1e3:.0f} ms a step", flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(rows), encoding="utf-8")
    table = summary(rows)
    show(table)
    if set(args.methods) == set(METHODS):
        plot(table)
    return table


def show(table: list[dict[str, Any]]) -> None:
    """Prints the table in Markdown."""
    print("\n| method | sampler | calls | distance | nll | h1 | h2 | gain |")
    print("|---|---|---|---|---|---|---|---|")
    for r in table:
        gain = f"{r['gain']:+.4f} ± {r['gain se']:.4f}" if "gain" in r else ""
        print(
            f"| {r['method']} | {r['sampler']} | {r['calls']:.1f} | {r['distance']:.4f} ±"
            f" {r['distance se']:.4f} | {r['nll']:.3f} ± {r['nll se']:.3f} | {r['h1']:.3f} |"
            f" {r['h2']:.3f} | {gain} |"
        )


def plot(table: list[dict[str, Any]]) -> None:
    """Draws distance and likelihood over calls, and likelihood over entropy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    true = next(r for r in table if r["method"] == "true rows")
    for method, sampler in SHOWN:
        own = [r for r in table if (r["method"], r["sampler"]) == (method, sampler)]
        value = lambda name, own=own: [r[name] for r in own]
        style: dict[str, Any] = {"marker": "o", "markersize": 3, "label": f"{method}, {sampler}"}
        if method in ("plain", "exact"):
            style |= {"color": "black", "linestyle": "-" if method == "plain" else ":"}
        for axes, name in ((left, "distance"), (middle, "nll")):
            axes.errorbar(value("calls"), value(name), yerr=value(name + " se"), **style)
        right.plot(value("h2"), value("nll"), **style)
    left.axhline(true["distance"], color="grey", linestyle="--", linewidth=1)
    middle.axhline(true["nll"], color="grey", linestyle="--", linewidth=1)
    right.plot(true["h2"], true["nll"], "*", color="grey", markersize=12, label="true rows")
    left.set(xlabel="calls", ylabel="total variation of pairs", xscale="log", yscale="log")
    middle.set(xlabel="calls", ylabel="nll, nats per token", xscale="log")
    right.set(xlabel="entropy of a token given the one before", ylabel="nll, nats per token")
    for axes in (left, middle):
        axes.set_xticks(CALLS, [str(n) for n in CALLS])
        axes.minorticks_off()
    right.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(PICTURE, dpi=110)
    print(f"\n({PICTURE})")


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
