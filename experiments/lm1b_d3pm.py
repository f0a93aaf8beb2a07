"""D3PM on One Billion Words with MDLM's recipe: the last row of its table 8.

    mdlm prepare experiments/lm1b.py        # once, for all of lm1b*: writes data/lm1b
    mdlm train experiments/lm1b_d3pm.py

Absorbing noise in 1,000 discrete steps; the network predicts a distribution of every token, masked
or not, in which the mask has probability, and the loss of the clean row at t = 0 is added. Of
MDLM's three steps none is left: neither continuous time, nor carry-over unmasking, nor zero masking
probabilities.
Data: those of `lm1b.py`, as are network size, optimizer and steps.
Hardware: 8 GPUs of 80 GB, about five days (two network calls for each row).
Expected, *published* (test perplexity, padded): <= 28.51 +- 0.15 with this recipe
(arXiv:2406.07524, table 8); <= 76.90 in D3PM's own (arXiv:2107.03006: 70M parameters, packed rows).
"""

from mdlm.data import lm1b_padded
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import D3PM
from mdlm.optim import AdamW
from mdlm.parameterizations import Mean
from mdlm.samplers import Reverse

experiment = Experiment(
    name="lm1b_d3pm",
    data=lm1b_padded(store="data/lm1b"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    parameterization=Mean(mask_has_mass=True),
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
