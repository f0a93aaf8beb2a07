"""A causal language model goes on as a masked diffusion model.

    mdlm train ar_to_diffusion --init-from runs/ar
    mdlm train ar_to_diffusion --init-from runs/qwen --recipe blocks

The run named by --init-from is autoregressive: one of ours, or an import of LLaMA or Qwen. Its
parameters, data, tokenizer and optimizer are taken over. Attention is opened, and logits stay at
the token before the one that they are about, or move to that token with `--shift False`.
docs/conversion.md compares the recipes:

    open      attention to everything at once
    windows   each token sees 0, 1, 3, 7, ... tokens ahead, then everything, in the manner of
              DiffuLLaMA (arXiv:2410.17891)
    blocks    block diffusion with blocks of 1, 4, 16, ... tokens, then of the whole row, and at the
              end of 32: warm-up, stable and decay of LLaDA2.0 (arXiv:2512.15745)
    both      attention to everything, and next-token prediction with causal attention beside it
"""

from dataclasses import replace
from typing import Literal

from mdlm.experiment import Experiment, Perplexity, Stage
from mdlm.models import opened
from mdlm.objectives import BlockNelbo, Nelbo, Windowed, WithCausal
from mdlm.samplers import Ancestral, BlockByBlock

Recipe = Literal["open", "windows", "blocks", "both"]
BLOCK = 32
"""Tokens of a diffusion block at the end of "blocks"."""


def experiment(base: Experiment, recipe: Recipe = "open", shift: bool = True) -> Experiment:
    length, network = base.data.packing.length, opened(base.network, shift=shift)
    converted = replace(
        base,
        name=f"ar_to_diffusion_{recipe}",
        network=network,
        objective=Nelbo(),
        sampler=Ancestral(steps=length),
        evaluation=Perplexity(passes=4, batch_size=base.evaluation.batch_size),
    )
    if recipe == "open":
        return converted
    if recipe == "both":
        return replace(converted, objective=WithCausal(weight=0.5))
    if recipe == "windows":
        sizes = [2**n - 1 for n in range(length.bit_length() - 1)]
        ends = [0.4 * (i + 1) / len(sizes) for i in range(len(sizes))]
        stages = (
            Stage(until=end, objective=Windowed(ahead=n))
            for end, n in zip(ends, sizes, strict=True)
        )
        return replace(converted, stages=tuple(stages))
    if recipe == "blocks":
        sizes = [4**n for n in range(length.bit_length()) if 4**n < length]
        warm_up = (
            Stage(
                until=0.3 * (i + 1) / len(sizes),
                network=replace(network, attends="blocks", block_size=size),
                objective=BlockNelbo(block_size=size),
            )
            for i, size in enumerate(sizes)
        )
        stable = Stage(until=0.8, network=network, objective=Nelbo())
        return replace(
            converted,
            network=replace(network, attends="blocks", block_size=BLOCK),
            objective=BlockNelbo(block_size=BLOCK),
            sampler=BlockByBlock(block_size=BLOCK),
            stages=(*warm_up, stable),
        )
    raise ValueError(f"recipe={recipe!r}: must be open, windows, blocks or both")
