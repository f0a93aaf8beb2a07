"""MDLM (arXiv:2406.07524) on English books: masked diffusion, SUBS.

    mdlm train experiments/family/books/mdlm.py --data.source.train 'books/train-*.txt.gz' \\
        --data.source.valid books/valid.txt.gz --data.source.test books/test.txt.gz

Masked noise on a log-linear schedule; SUBS; the continuous-time NELBO. The network is not
conditioned on the time.
Data: as in experiments/books.py. All experiments of this folder (docs/methods.md) share data,
network size, optimizer, batch size and number of training tokens.
Hardware: one CPU core, about five minutes.
"""

from mdlm.data import BPE, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import Nelbo
from mdlm.optim import Muon
from mdlm.processes import Masked
from mdlm.samplers import Ancestral
from mdlm.schedules import LogLinear

experiment = Experiment(
    name="mdlm",
    data=TextData(
        source=TextFiles(
            train="books/train-*.txt.gz",
            valid="books/valid.txt.gz",
            test="books/test.txt.gz",
            separator="\n\n\n",
        ),
        tokenizer=BPE(vocab_size=4096),
        packing=Wrap(length=128, row_specials=False, remainder="drop"),
    ),
    network=DiT(width=128, depth=4, heads=4, norm="rms", qk_norm=True),
    process=Masked(schedule=LogLinear()),
    objective=Nelbo(),
    sampler=Ancestral(steps=128),
    optimizer=Muon(
        learning_rate=0.01,
        adam_rate=1.0,
        b2=0.98,
        warmup_steps=60,
        schedule="wsd",
        cooldown=0.4,
    ),
    train=Training(steps=600, batch_size=16, eval_every=100, eval_rows=256),
    evaluation=Perplexity(passes=2, batch_size=64),
)
