"""GenMD4 (arXiv:2406.04329) on the characters of Shakespeare: a learned masking rate per token.

    mdlm train experiments/family/genmd4.py --data.source.train tinyshakespeare.txt

Masked noise at a learned rate for each token. Gradients of the rates need two noised copies of each
row, so a step evaluates the network on twice as many tokens.
Data: as in experiments/shakespeare.py, in rows of 128 characters. All experiments of this folder
(docs/methods.md) share data, network size, optimizer, batch size and number of training tokens.
Hardware: one CPU core, about three minutes.
"""

from mdlm.data import Characters, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import GeneralizedNelbo
from mdlm.optim import Muon
from mdlm.processes import Masked
from mdlm.samplers import Reverse
from mdlm.schedules import LearnedPolynomial

experiment = Experiment(
    name="genmd4",
    data=TextData(
        source=TextFiles(train="tinyshakespeare.txt"),
        tokenizer=Characters(),
        packing=Wrap(length=128, row_specials=False),
    ),
    network=DiT(width=128, depth=4, heads=4, norm="rms", qk_norm=True),
    process=Masked(schedule=LearnedPolynomial()),
    objective=GeneralizedNelbo(),
    sampler=Reverse(steps=128, grid="cosine"),
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
