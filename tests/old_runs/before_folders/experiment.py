"""A small run, with the module names of version 0.1: it is opened by later versions in a test."""

from mdlm.change_of_variables import ChangeOfVariables
from mdlm.data.fasta import Fasta
from mdlm.data.text8 import Text8File
from mdlm.md4_schedules import Polynomial
from mdlm.per_token_schedules import LearnedPolynomial
from mdlm.samplers.guidance import ClassifierFree
from mdlm.samplers.selection import Threshold
from mdlm.samplers.shaping import Annealed

from mdlm.data.dataset import TextData
from mdlm.data.packing import Wrap
from mdlm.data.sources import TextFiles
from mdlm.data.tokenizers import Characters
from mdlm.evals.nll import Perplexity
from mdlm.experiment import Experiment, Training
from mdlm.models.dit import DiT
from mdlm.objectives.nelbo import Nelbo
from mdlm.optim import AdamW
from mdlm.processes.masked import Masked
from mdlm.samplers.parallel import Parallel
from mdlm.schedules import LogLinear

OTHERS = (Fasta, Text8File, LearnedPolynomial, ClassifierFree, LogLinear)

experiment = Experiment(
    name="old",
    data=TextData(
        source=TextFiles(train="text.txt"),
        tokenizer=Characters(),
        packing=Wrap(length=16, row_specials=False),
    ),
    network=DiT(width=8, depth=1, heads=1, cond_dim=8),
    process=Masked(schedule=ChangeOfVariables(base=Polynomial(power=2.0))),
    objective=Nelbo(t_min=0.01),
    optimizer=AdamW(learning_rate=3e-3, warmup_steps=5),
    sampler=Parallel(rule=Threshold(tau=0.9), temperature=Annealed(first=1.0, last=0.5)),
    train=Training(steps=20, batch_size=8, ema_decay=0.9, log_every=5, keep=1),
    evaluation=Perplexity(passes=2, batch_size=16),
)
