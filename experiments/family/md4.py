"""MD4 (arXiv:2406.04329) on the characters of Shakespeare: time-conditioned masked diffusion.

    mdlm train experiments/family/md4.py --data.source.train tinyshakespeare.txt

Masked noise on a linear schedule; times on one grid with a random offset. The network is
conditioned on the time, and samples are drawn on a cosine grid.
Data: as in experiments/shakespeare.py, in rows of 128 characters. All experiments of this folder
(docs/methods.md) share data, network size, optimizer, batch size and number of training tokens.
Hardware: one CPU core, about three minutes.
"""

from mdlm.data import Characters, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import Nelbo
from mdlm.optim import Muon
from mdlm.processes import Masked
from mdlm.samplers import Ancestral
from mdlm.schedules import Polynomial
from mdlm.times import Antithetic

experiment = Experiment(
    name="md4",
    data=TextData(
        source=TextFiles(train="tinyshakespeare.txt"),
        tokenizer=Characters(),
        packing=Wrap(length=128, row_specials=False),
    ),
    network=DiT(width=128, depth=4, heads=4, norm="rms", qk_norm=True),
    process=Masked(schedule=Polynomial(power=1.0, eps=1e-4)),
    objective=Nelbo(times=Antithetic()),
    sampler=Ancestral(steps=128, grid="cosine"),
    time_condition="t",
    optimizer=Muon(
        learning_rate=0.01,
        adam_rate=1.0,
        b2=0.98,
        warmup_steps=60,
        schedule="wsd",
        cooldown=0.4,
    ),
    train=Training(steps=600, batch_size=16, eval_every=100, eval_rows=128),
    evaluation=Perplexity(passes=4, batch_size=64),
)
