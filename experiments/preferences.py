"""Learning preferences: a run goes on to prefer the chosen of two responses to the rejected one.

    mdlm train preferences --init-from runs/sft --data.source.train preferences.jsonl

Network, process, sampler, tokenizer and row length are those of the run named by --init-from. A
line of the file has `prompt`, `chosen` and `rejected`. With a masked process this is VRPO
(arXiv:2505.19223), DPO on bounds of the likelihoods; a network that goes from left to right has
exact likelihoods: --objective "CausalPreference()". docs/preferences.md has the formulas.
"""

from dataclasses import replace

from mdlm.data import PairData, Preferences, Responses
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.objectives import Preference
from mdlm.optim import AdamW


def experiment(base: Experiment) -> Experiment:
    packing = base.data.packing
    if not isinstance(packing, Responses):
        ends = "once" if base.network.attends == "causal" else "filled"
        packing = Responses(length=packing.length, bos=packing.frame[0], eos=ends)
    return replace(
        base,
        name="preferences",
        data=PairData(
            source=Preferences(train="preferences.jsonl"),
            tokenizer=base.data.tokenizer,
            packing=packing,
        ),
        objective=Preference(beta=0.1, samples=8),
        optimizer=AdamW(learning_rate=1e-5, warmup_steps=20),
        train=Training(
            steps=500, batch_size=16, ema_decay=0.99, eval_every=100, checkpoint_every=100
        ),
        evaluation=Perplexity(passes=8, batch_size=32),
    )
