"""Learning from a reward: a run goes on to write texts that a Python function rates highly.

    mdlm train reward --init-from runs/quickstart
    mdlm train reward --init-from runs/quickstart --objective.kl 0.2

Network, process, tokenizer and data are those of the run named by --init-from. The texts are rows
of 64 tokens, drawn with a cache if the network has one; the reward is for short lines. Where the
data are prompts and responses, the texts are responses to the prompts. Replace `shorter_lines` by a
function of your own. docs/preferences.md has the methods, and what this run printed.
"""

from dataclasses import replace

from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.objectives import GRPO, Rollouts
from mdlm.optim import AdamW
from mdlm.samplers import Dual, Parallel, Share


def shorter_lines(prompts: list[str], texts: list[str]) -> list[float]:
    """Minus the mean number of characters of the lines that are not blank, in lines of 40."""
    lines = [[line for line in text.splitlines() if line.strip()] for text in texts]
    return [-sum(map(len, own)) / max(len(own), 1) / 40 if own else -2.0 for own in lines]


def experiment(base: Experiment) -> Experiment:
    cache = Dual() if base.network.caches else None
    return replace(
        base,
        name="reward",
        data=replace(base.data, packing=replace(base.data.packing, length=64)),
        objective=GRPO(rollouts=Rollouts(reward="shorter_lines", group=8)),
        sampler=Parallel(
            rule=Share(steps=4), order="random", block_size=16, temperature=1.0, cache=cache
        ),
        optimizer=AdamW(learning_rate=3e-4, warmup_steps=5),
        train=Training(
            steps=100, batch_size=32, ema_decay=0.9, log_every=5, eval_every=50, eval_rows=0
        ),
        evaluation=Perplexity(passes=8, batch_size=32),
    )
