"""GIDD (arXiv:2503.04482) on the characters of Shakespeare: mask and uniform noise mixed.

    mdlm train experiments/family/gidd.py --data.source.train tinyshakespeare.txt

Mostly masked noise, a tenth of it uniform; its NELBO, trained with dynamic weights.
Data: as in experiments/shakespeare.py, in rows of 128 characters. All experiments of this folder
(docs/methods.md) share data, network size, optimizer, batch size and number of training tokens.
Hardware: one CPU core, about three minutes.
"""

from mdlm.data import Characters, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import HybridNelbo
from mdlm.optim import Muon
from mdlm.parameterizations import Mean
from mdlm.processes import Hybrid, HybridSchedule
from mdlm.samplers import Reverse

experiment = Experiment(
    name="gidd",
    data=TextData(
        source=TextFiles(train="tinyshakespeare.txt"),
        tokenizer=Characters(),
        packing=Wrap(length=128, row_specials=False),
    ),
    network=DiT(width=128, depth=4, heads=4, norm="rms", qk_norm=True),
    process=Hybrid(schedule=HybridSchedule(p_uniform=0.1)),
    parameterization=Mean(),
    objective=HybridNelbo(),
    sampler=Reverse(steps=128),
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
