"""MDLM on OpenWebText with a network that reads the noise level: a row of its table 12.

    mdlm prepare experiments/owt_small.py   # once, for all of owt*: writes data/openwebtext
    mdlm train experiments/ablations/owt_time_conditioned.py

Data: those of `owt_small.py`, as are network, optimizer, steps and protocol; there the network does
not read the noise level.
Hardware: 8 GPUs of 80 GB, about a week.
Expected, *published* (valid perplexity): <= 23.21 with sigma as input, <= 23.05 without
(arXiv:2406.07524, table 12).
"""

from mdlm.data import openwebtext
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.objectives import Nelbo
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="owt_time_conditioned",
    data=openwebtext(store="data/openwebtext"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    objective=Nelbo(reconstruction=False),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    time_condition="sigma",
    sampler=Ancestral(steps=1000),
    train=Training(
        steps=1_000_000,
        batch_size=512,
        log_every=100,
        eval_every=10_000,
        sample_every=50_000,
        checkpoint_every=5_000,
    ),
)
