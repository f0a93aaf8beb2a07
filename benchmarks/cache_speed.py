"""Times sampling with caches against no cache, on networks with random weights.

    python -m benchmarks.cache_speed                    # all shapes
    python -m benchmarks.cache_speed decoder --rounds 5

    blocks, blocks-8    a block diffusion transformer, rows of 1,024 tokens in blocks of 16, one
                        token a call, a batch of 1 and of 8
    decoder             a transformer of the LLaMA shape that attends to all, prompts of 256 tokens
                        and 512 new ones, blocks of 32, threshold 0.9

Networks are 256 wide and 4 deep, in float32, with 1,024 tokens. "ms" is the median time of a call,
compilation aside; "times" the median ratio to no cache of rounds in which all take turns. Every
call of no cache takes the same time, so that in blocks the first `--calls` calls after a prompt of
half a row are timed, elsewhere all.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from mdlm.config.component_text import to_text
from mdlm.diffusion import Diffusion
from mdlm.keys import by_row
from mdlm.models import BlockDiT, Decoder
from mdlm.models.network import Network, denoiser, init
from mdlm.parameterizations import Subs
from mdlm.processes import Masked
from mdlm.samplers import (
    Cache,
    D2Cache,
    Delayed,
    Dual,
    FinishedBlocks,
    FixedCount,
    FreeCache,
    Parallel,
    ParallelBlocks,
    Prefix,
    ReCAP,
    Sampler,
    Threshold,
)
from mdlm.samplers.loop import Loop
from mdlm.types import Vocab

VOCAB = Vocab(size=1025, mask_id=1024)
SIZE: dict[str, Any] = dict(width=256, depth=4, dtype="float32")


@dataclass(frozen=True)
class Shape:
    """What is timed: a batch of rows, of which the first `prompt` tokens are given."""

    network: Network
    sampler: Any
    caches: tuple[Cache | None, ...]
    length: int
    prompt: int
    rows: int = 1
    part: bool = False  # whether only the first calls are timed


BLOCKS = Shape(
    network=BlockDiT(**SIZE, heads=4, cond_dim=64, block_size=16),
    sampler=ParallelBlocks(block_size=16, rule=FixedCount()),
    caches=(None, FinishedBlocks()),
    length=1024,
    prompt=512,
    part=True,
)
DECODER = Decoder(**SIZE, heads=4)
SHAPES = {
    "blocks": BLOCKS,
    "blocks-8": replace(BLOCKS, rows=8),
    "decoder": Shape(
        network=DECODER,
        sampler=Parallel(block_size=32, rule=Threshold(tau=0.9)),
        caches=(None, Prefix(), Dual(), Delayed(), FreeCache(), ReCAP(), D2Cache()),
        length=768,
        prompt=256,
    ),
}


def timed(shape: Shape, sampler: Sampler, calls: int) -> Callable[[], int]:
    """Returns a compiled function that makes the calls after the prompt has been read, and returns
    how many there were."""
    condition = (lambda t: t) if isinstance(shape.network, BlockDiT) else None

    def loop(params: Any) -> Loop:
        diffusion = Diffusion(
            process=Masked().with_vocab(VOCAB),
            parameterization=Subs().with_vocab(VOCAB),
            denoise=denoiser(shape.network, VOCAB.size, params, condition=condition),
        )
        return Loop(sampler=sampler, diffusion=diffusion)

    def advance(params: Any, begun: Any) -> Any:
        is_over = lambda state: state.done.all() | (state.nfe - begun.nfe >= calls)
        go = loop(params).advance
        state = jax.lax.while_loop(lambda state: ~is_over(state), go, begun)
        return state.nfe - begun.nfe, state.tokens

    params = jax.jit(partial(init, shape.network, columns=VOCAB.size))(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 1024, (shape.rows, shape.length), np.int32)
    is_fixed = np.broadcast_to(np.arange(shape.length) < shape.prompt, tokens.shape)
    keys = by_row(jax.random.key(1), jnp.arange(shape.rows))
    begun = jax.jit(lambda params, *row: loop(params).begin(*row))(params, keys, tokens, is_fixed)
    built = harness.build(advance, params, begun)
    return lambda: int(jax.block_until_ready(built.call(params, begun))[0])


def run(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints a table of each shape; returns the ratios by shape and cache."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cache_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choices = [*SHAPES]
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(choices)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=32, help="in blocks (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in args.shapes:
        if name not in SHAPES:
            parser.error(f"{name}: must be one of {', '.join(choices)}")
    ratios: dict[str, dict[str, float]] = {}
    for name in args.shapes or choices:
        shape, found = SHAPES[name], {}
        calls = args.calls if shape.part else shape.length
        samplers = {
            "none" if cache is None else to_text(cache): replace(shape.sampler, cache=cache)
            for cache in shape.caches
        }
        draws = {text: timed(shape, sampler, calls) for text, sampler in samplers.items()}
        counts = {text: draw() for text, draw in draws.items()}
        times = harness.alternate(draws, rounds=args.rounds, calls=1)
        print(f"\n{name}\n\n| cache | calls | ms | times |\n|---|---|---|---|")
        for text, took in times.items():
            found[text] = float(np.median(np.array(times["none"]) / np.array(took)))
            each = 1e3 * float(np.median(took)) / counts[text]
            print(f"| `{text}` | {counts[text]} | {each:.1f} | {found[text]:.2f} |", flush=True)
        ratios[name] = found
    return ratios


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
