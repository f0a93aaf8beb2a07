"""D3PM (arXiv:2107.03006) on the characters of Shakespeare: absorbing noise, discrete time.

    mdlm train experiments/family/d3pm.py --data.source.train tinyshakespeare.txt

Masked noise in 1,000 steps. The network predicts a distribution of each clean token at every
position: unmasked tokens are not copied, and the mask may have probability.
Data: as in experiments/shakespeare.py, in rows of 128 characters. All experiments of this folder
(docs/methods.md) share data, network size, optimizer, batch size and number of training tokens.
Hardware: one CPU core, about three minutes.
"""

from mdlm.data import Characters, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import D3PM
from mdlm.optim import Muon
from mdlm.parameterizations import Mean
from mdlm.processes import Masked
from mdlm.samplers import Reverse
from mdlm.schedules import LogLinear

experiment = Experiment(
    name="d3pm",
    data=TextData(
        source=TextFiles(train="tinyshakespeare.txt"),
        tokenizer=Characters(),
        packing=Wrap(length=128, row_specials=False),
    ),
    network=DiT(width=128, depth=4, heads=4, norm="rms", qk_norm=True),
    process=Masked(schedule=LogLinear(eps=0.0)),
    parameterization=Mean(mask_has_mass=True),
    objective=D3PM(steps=1000),
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
