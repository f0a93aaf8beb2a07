"""How far samplers are from a law that is known, with networks that make no mistakes.

    python -m benchmarks.oracle                  # a table, and docs/samplers.png
    python -m benchmarks.oracle --rows 2000 --samplers "Ancestral(steps=8)"

Two laws. `Enumerated` is a random one on rows of three tokens, known entry by entry. `HiddenMarkov`
is a hidden Markov model over longer rows: its exact posterior p(x_i | what is visible) comes from
the forward and backward recursions, so the network is right and what a sampler gets wrong is its
own. Distances are total variations, of whole rows or of neighbouring pairs of tokens, next to that
of as many rows drawn from the law itself.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from mdlm.config.component_text import from_text
from mdlm.errors import InputError
from mdlm.keys import by_row
from mdlm.parameterizations.base import Parameterization
from mdlm.parameterizations.score import Score
from mdlm.parameterizations.subs import Subs
from mdlm.processes.masked import Masked
from mdlm.samplers.base import Sampler
from mdlm.samplers.loop import generate
from mdlm.samplers.state import Samples
from mdlm.schedules.closed_form import LogLinear
from mdlm.types import DenseLogits, NetInput, Vocab

PICTURE = Path("docs/samplers.png")


class Oracle(Protocol):
    """A law of rows of `length` tokens 0..symbols-1 (the mask is the id after them), and its
    posterior as a network."""

    @property
    def name(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def symbols(self) -> int: ...

    def denoise(self, inputs: NetInput, *, key: Any = None) -> DenseLogits: ...

    def distance(self, tokens: np.ndarray) -> float:
        """Total variation between the law and the frequencies of these rows."""
        ...

    def draw(self, rows: int, seed: int) -> np.ndarray:
        """Rows from the law itself."""
        ...


@dataclass(frozen=True)
class Enumerated:
    """A random law on all rows of a few tokens."""

    length: int = 3
    symbols: int = 3
    seed: int = 0
    name: str = "enumerated law, whole rows"

    @cached_property
    def sequences(self) -> np.ndarray:
        return np.array(list(itertools.product(range(self.symbols), repeat=self.length)))

    @cached_property
    def p(self) -> np.ndarray:
        return np.random.default_rng(self.seed).dirichlet(np.full(len(self.sequences), 0.4))

    def denoise(self, inputs: NetInput, *, key: Any = None) -> DenseLogits:
        tokens = inputs.tokens[:, None]
        agrees = (tokens == self.sequences[None]) | (tokens == self.symbols)
        weight = jnp.where(agrees.all(-1), self.p[None].astype(np.float32), 0.0)
        hot = np.eye(self.symbols + 1, dtype=np.float32)[self.sequences]
        return DenseLogits(jnp.log(jnp.einsum("bn,nlv->blv", weight, hot)))

    def distance(self, tokens: np.ndarray) -> float:
        number = tokens @ self.symbols ** np.arange(self.length - 1, -1, -1)
        share = np.bincount(number, minlength=len(self.p)) / len(tokens)
        return 0.5 * float(np.abs(share - self.p).sum())

    def draw(self, rows: int, seed: int) -> np.ndarray:
        return self.sequences[np.random.default_rng(seed).choice(len(self.p), rows, p=self.p)]


@dataclass(frozen=True)
class HiddenMarkov:
    """A stationary hidden Markov model with random transitions and emissions."""

    length: int = 32
    symbols: int = 6
    states: int = 4
    seed: int = 1
    name: str = "hidden Markov model, neighbouring pairs"

    @cached_property
    def model(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The law of the first state, transitions `[from to]`, emissions `[state token]`."""
        rng = np.random.default_rng(self.seed)
        moves = rng.dirichlet(np.full(self.states, 0.3), size=self.states)
        emits = rng.dirichlet(np.full(self.symbols, 0.3), size=self.states)
        stationary = np.linalg.matrix_power(moves, 10_000)[0]
        return stationary / stationary.sum(), moves, emits

    def denoise(self, inputs: NetInput, *, key: Any = None) -> DenseLogits:
        first, moves, emits = (jnp.asarray(x, jnp.float32) for x in self.model)
        seen = jnp.concatenate([emits.T, jnp.ones((1, self.states))])[inputs.tokens]
        seen = seen.swapaxes(0, 1)  # [l b state]: the likelihood of what is visible there
        normal = lambda x: x / x.sum(-1, keepdims=True)

        def forward(before, here):
            after = normal((before * here) @ moves)
            return after, before

        def backward(after, here):
            before = normal((after * here) @ moves.T)
            return before, after

        start = jnp.broadcast_to(first, seen.shape[1:])
        _, past = jax.lax.scan(forward, start, seen)
        _, future = jax.lax.scan(backward, jnp.ones_like(start), seen, reverse=True)
        token = normal(past * future) @ emits
        return DenseLogits(jnp.log(jnp.pad(token.swapaxes(0, 1), ((0, 0), (0, 0), (0, 1)))))

    @cached_property
    def pairs(self) -> np.ndarray:
        """The law of two neighbours."""
        first, moves, emits = self.model
        return emits.T @ (first[:, None] * moves) @ emits

    def distance(self, tokens: np.ndarray) -> float:
        number = (tokens[:, :-1] * self.symbols + tokens[:, 1:]).ravel()
        share = np.bincount(number, minlength=self.symbols**2) / len(number)
        return 0.5 * float(np.abs(share - self.pairs.ravel()).sum())

    def draw(self, rows: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        first, moves, emits = self.model
        pick = lambda p: (rng.random(len(p))[:, None] < p.cumsum(-1)).argmax(-1)
        state, tokens = pick(np.tile(first, (rows, 1))), []
        for _ in range(self.length):
            tokens.append(pick(emits[state]))
            state = pick(moves[state])
        return np.stack(tokens, axis=1)


def sample(oracle: Oracle, sampler: Sampler, rows: int, seed: int = 0) -> Samples:
    """Rows drawn by `sampler` with the oracle's posterior as network."""
    vocab = Vocab(size=oracle.symbols + 1, mask_id=oracle.symbols)
    is_score = issubclass(Score, sampler.parameterizations) and not issubclass(
        Subs, sampler.parameterizations
    )
    parameterization: Parameterization = Score() if is_score else Subs()

    def denoise(inputs: NetInput, *, key: Any = None) -> DenseLogits:
        logits = oracle.denoise(inputs).logits()
        if not is_score:
            return DenseLogits(logits)
        # A score's logits are not up to a constant: the law times the number of tokens.
        return DenseLogits(jax.nn.log_softmax(logits, axis=-1) + np.log(oracle.symbols))

    @jax.jit
    def run(keys, tokens, is_fixed):
        return generate(
            keys,
            tokens,
            is_fixed,
            sampler=sampler,
            process=Masked(schedule=LogLinear(eps=1e-4)).with_vocab(vocab),
            parameterization=parameterization.with_vocab(vocab),
            denoise=denoise,
        )

    nothing = np.zeros((rows, oracle.length), np.int32)
    keys = by_row(jax.random.key(seed), jnp.arange(rows))
    return jax.device_get(run(keys, nothing, nothing.astype(bool)))


STEPS = (1, 2, 4, 8, 16, 32, 64)
CURVES = {
    "ancestral": "Ancestral(steps={n})",
    "ancestral, cosine grid": "Ancestral(steps={n}, grid='cosine')",
    "first hitting": "FirstHitting(per_call={k})",
    "Tweedie (score)": "Tweedie(steps={n})",
    "entropy order": "Parallel(order='entropy', rule=FixedCount(per_call={k}))",
    "confidence order": "Parallel(rule=FixedCount(per_call={k}))",
    "ReMDM, cap 0.04": "Remask(eta=0.04, steps={n})",
    "Psi, kappa 0.9": "Psi(kappa=0.9, steps={n})",
    "P2, eta 1": "PathPlanning(steps={n})",
}
"""Curves of the picture: samplers of `{n}` steps, or that write `{k}` tokens of a row at once, with
which they make as many calls."""


def curve(oracle: Oracle, pattern: str, rows: int) -> list[tuple[int, float]]:
    """Steps and distance; where tokens are written at once, for as many steps as there can be."""
    points: list[tuple[int, float]] = []
    most = oracle.length if "{k}" in pattern else STEPS[-1]
    for n in sorted({*(n for n in STEPS if n <= most), most}):
        out = sample(
            oracle, from_text(pattern.format(n=n, k=-(-oracle.length // n)), Sampler), rows
        )
        points.append((n, oracle.distance(out.tokens)))
    return points


def draw(found: dict[str, dict[str, list[tuple[int, float]]]], floors: dict[str, float]) -> None:
    """Distance against steps, a panel for each law, into docs/samplers.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found))
    for axes, (law, curves) in zip(panels, found.items(), strict=True):
        for place, (name, points) in enumerate(curves.items()):
            steps, distances = np.array(points).T
            axes.plot(steps, distances, marker="osD^vP*Xd"[place], markersize=4, label=name)
        axes.axhline(floors[law], color="grey", linestyle=":", label="rows of the law itself")
        axes.set_xscale("log", base=2)
        axes.set_xticks(STEPS, [str(n) for n in STEPS])
        axes.set(yscale="log", title=law, xlabel="steps")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2, which="both")
    panels[0].set_ylabel("total variation to the law")
    panels[-1].legend(frameon=False, fontsize="small", loc="upper right", bbox_to_anchor=(1.45, 1))
    figure.savefig(PICTURE, dpi=120)
    print(f"\n({PICTURE})")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.oracle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=20_000, help="rows that each sampler draws")
    parser.add_argument("--samplers", nargs="+", metavar="TEXT", help="these alone; no picture")
    args = parser.parse_args(arguments)
    try:
        chosen = {text: from_text(text, Sampler) for text in args.samplers or ()}
    except InputError as error:
        parser.error(str(error))
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    floors: dict[str, float] = {}
    column = "NFE" if chosen else "steps"
    for oracle in (Enumerated(), HiddenMarkov()):
        floors[oracle.name] = oracle.distance(oracle.draw(args.rows, seed=0))
        print(
            f"\n{oracle.name}: {args.rows:,} rows of the law itself are"
            f" {floors[oracle.name]:.4f} off\n\n| sampler | {column} | total variation |"
            "\n|---|---|---|"
        )
        for text, sampler in chosen.items():
            out = sample(oracle, sampler, args.rows)
            print(f"| {text} | {int(out.nfe)} | {oracle.distance(out.tokens):.4f} |", flush=True)
        if chosen:
            continue
        found[oracle.name] = {}
        for name, pattern in CURVES.items():
            points = found[oracle.name][name] = curve(oracle, pattern, args.rows)
            steps = ", ".join(str(n) for n, _ in points)
            distances = ", ".join(f"{distance:.4f}" for _, distance in points)
            print(f"| {name} | {steps} | {distances} |", flush=True)
    if found:
        draw(found, floors)
    return 0


if __name__ == "__main__":
    sys.exit(harness.main(main))
