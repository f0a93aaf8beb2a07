"""SEDD with absorbing noise on OpenWebText: a baseline of MDLM's tables 2 and 3.

    mdlm prepare experiments/owt_small.py   # once, for all of owt*: writes data/openwebtext
    mdlm train experiments/owt_sedd.py
    mdlm eval runs/owt_sedd --on all        # table 3, zero-shot

The network predicts ratios of probabilities, conditioned on sigma, trained with score entropy.
Data: those of `owt_small.py`, as are network size, optimizer, steps and protocol.
Hardware: 8 GPUs of 80 GB, about a week.
Expected, *published* (valid perplexity): <= 24.10 after 1M steps, "262B tokens"; zero-shot: PTB
100.09, Wikitext 34.28, LM1B 68.20, Lambada 49.86, AG News 62.09, Pubmed 44.53, Arxiv 38.48
(arXiv:2406.07524, tables 2 and 3). The score entropy leaves out the reconstruction and the prior
term.
"""

from mdlm.data import openwebtext
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.objectives import ScoreEntropy
from mdlm.optim import AdamW
from mdlm.parameterizations import Score
from mdlm.samplers import Tweedie

experiment = Experiment(
    name="owt_sedd",
    data=openwebtext(store="data/openwebtext"),
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
        eval_every=10_000,
        sample_every=50_000,
        checkpoint_every=5_000,
    ),
)
