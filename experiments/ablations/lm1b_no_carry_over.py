"""MDLM on One Billion Words in discrete time without carry-over unmasking: a row of its table 8.

    mdlm prepare experiments/lm1b.py        # once, for all of lm1b*: writes data/lm1b
    mdlm train experiments/ablations/lm1b_no_carry_over.py

As `lm1b_discrete_time`, and the network's distribution is used at every position, also where the
token is not masked; the loss of the clean row at t = 0 is added. The mask still has probability 0,
unlike in `lm1b_d3pm`.
Data: those of `lm1b.py`, as are network size, optimizer and steps.
Hardware: 8 GPUs of 80 GB, about five days (two network calls for each row).
Expected, *published* (test perplexity, padded): <= 28.56 +- 0.15; MDLM <= 27.04 +- 0.01
(arXiv:2406.07524, table 8).
"""

from mdlm.data import lm1b_padded
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import D3PM
from mdlm.optim import AdamW
from mdlm.parameterizations import Mean
from mdlm.samplers import Reverse

experiment = Experiment(
    name="lm1b_no_carry_over",
    data=lm1b_padded(store="data/lm1b"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    parameterization=Mean(),
    objective=D3PM(steps=1000, reconstruction=True),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    sampler=Reverse(steps=1000),
    train=Training(
        steps=1_000_000,
        batch_size=512,
        log_every=100,
        sample_every=50_000,
        checkpoint_every=10_000,
    ),
    evaluation=Perplexity(split="test", passes=4),
)
