"""SEDD (arXiv:2310.16834) on the characters of Shakespeare: masked noise, score entropy.

    mdlm train experiments/family/sedd.py --data.source.train tinyshakespeare.txt

Masked noise; the network predicts ratios of probabilities, trained with score entropy.
Data: as in experiments/shakespeare.py, in rows of 128 characters. All experiments of this folder
(docs/methods.md) share data, network size, optimizer, batch size and number of training tokens.
Hardware: one CPU core, about three minutes.
"""

from mdlm.data import Characters, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import ScoreEntropy
from mdlm.optim import Muon
from mdlm.parameterizations import Score
from mdlm.processes import Masked
from mdlm.samplers import Tweedie
from mdlm.schedules import LogLinear

experiment = Experiment(
    name="sedd",
    data=TextData(
        source=TextFiles(train="tinyshakespeare.txt"),
        tokenizer=Characters(),
        packing=Wrap(length=128, row_specials=False),
    ),
    network=DiT(width=128, depth=4, heads=4, norm="rms", qk_norm=True),
    process=Masked(schedule=LogLinear()),
    parameterization=Score(),
    objective=ScoreEntropy(),
    sampler=Tweedie(steps=128),
    time_condition="sigma",
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
