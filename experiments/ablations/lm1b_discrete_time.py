"""MDLM on One Billion Words trained in 1,000 discrete steps: a row of its table 8.

    mdlm prepare experiments/lm1b.py        # once, for all of lm1b*: writes data/lm1b
    mdlm train experiments/ablations/lm1b_discrete_time.py

The bound of the process of 1,000 steps instead of the continuous one, in training and evaluation.
(To evaluate a run of `lm1b.py` in so many steps: `mdlm eval runs/lm1b --steps 1000`.)
Data: those of `lm1b.py`, as are network, optimizer and steps.
Hardware: 8 GPUs of 80 GB, about four days.
Expected, *published* (test perplexity, padded): <= 27.19 +- 0.07; MDLM <= 27.04 +- 0.01
(arXiv:2406.07524, table 8).
"""

from mdlm.data import lm1b_padded
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import DiscreteNelbo
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="lm1b_discrete_time",
    data=lm1b_padded(store="data/lm1b"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    objective=DiscreteNelbo(steps=1000),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    sampler=Ancestral(steps=1000),
    train=Training(
        steps=1_000_000,
        batch_size=512,
        log_every=100,
        sample_every=50_000,
        checkpoint_every=10_000,
    ),
    evaluation=Perplexity(split="test", passes=4),
)
