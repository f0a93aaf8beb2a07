"""Masked diffusion with the times of AR-Diffusion (arXiv:2305.09515) on Shakespeare's characters.

    mdlm train experiments/family/ar_diffusion.py --data.source.train tinyshakespeare.txt

Each position has a diffusion time of its own: those on the left are less noised, and revealed
first. The bound is that of masked diffusion with such times; the network is not told them.
(AR-Diffusion itself diffuses embeddings. Other times: mdlm.schedules.LeftFirst, RandomOffsets.)
Data: as in experiments/shakespeare.py, in rows of 128 characters. All experiments of this folder
(docs/methods.md) share data, network size, optimizer, batch size and number of training tokens.
Hardware: one CPU core, about three minutes.
"""

from mdlm.data import Characters, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import Positional
from mdlm.optim import Muon
from mdlm.processes import Masked
from mdlm.samplers import Ancestral
from mdlm.schedules import ARDiffusion, LogLinear

experiment = Experiment(
    name="ar_diffusion",
    data=TextData(
        source=TextFiles(train="tinyshakespeare.txt"),
        tokenizer=Characters(),
        packing=Wrap(length=128, row_specials=False),
    ),
    network=DiT(width=128, depth=4, heads=4, norm="rms", qk_norm=True),
    process=Masked(schedule=LogLinear()),
    objective=Positional(by=ARDiffusion()),
    sampler=Ancestral(steps=128, positions=ARDiffusion()),
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
