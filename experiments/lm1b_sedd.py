"""SEDD with absorbing noise on One Billion Words, padded: a baseline of MDLM's table 1.

    mdlm prepare experiments/lm1b.py        # once, for all of lm1b*: writes data/lm1b
    mdlm train experiments/lm1b_sedd.py

The network predicts ratios of probabilities, conditioned on sigma, trained with score entropy.
Data: those of `lm1b.py`, as are network size, optimizer, steps and protocol.
Hardware: 8 GPUs of 80 GB, about four days.
Expected, *published* (test perplexity, padded): <= 32.79 after 1M steps, "33B tokens"
(arXiv:2406.07524, table 1). The score entropy leaves out the reconstruction and the prior term.
"""

from mdlm.data import lm1b_padded
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import ScoreEntropy
from mdlm.optim import AdamW
from mdlm.parameterizations import Score
from mdlm.samplers import Tweedie

experiment = Experiment(
    name="lm1b_sedd",
    data=lm1b_padded(store="data/lm1b"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    parameterization=Score(),
    objective=ScoreEntropy(),
    time_condition="sigma",
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    sampler=Tweedie(steps=1000),
    train=Training(
        steps=1_000_000,
        batch_size=512,
        log_every=100,
        sample_every=50_000,
        checkpoint_every=10_000,
    ),
    evaluation=Perplexity(split="test", passes=4),
)
