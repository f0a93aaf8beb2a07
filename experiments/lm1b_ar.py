"""An autoregressive transformer on One Billion Words, padded: the baseline of MDLM's table 1.

    mdlm prepare experiments/lm1b.py        # once, for all of lm1b*: writes data/lm1b
    mdlm train experiments/lm1b_ar.py

Data: those of `lm1b.py`, as are network size, optimizer and protocol. Half as many steps, 0.5M,
train on the same number of tokens: the loss counts every token, not only the masked half.
Hardware: 8 GPUs of 80 GB, about two days.
Expected, *published* (test perplexity, padded, exact): 22.32 after 0.5M steps, 20.86 after 5M
(arXiv:2406.07524, table 1). The first token of each row, [CLS], is not scored.
"""

from mdlm.data import lm1b_padded
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import CausalTransformer
from mdlm.objectives import Autoregressive
from mdlm.optim import AdamW
from mdlm.samplers import LeftToRight

experiment = Experiment(
    name="lm1b_ar",
    data=lm1b_padded(store="data/lm1b"),
    network=CausalTransformer(width=768, depth=12, heads=12, dropout=0.1),
    objective=Autoregressive(),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    sampler=LeftToRight(),
    train=Training(
        steps=500_000,
        batch_size=512,
        log_every=100,
        sample_every=50_000,
        checkpoint_every=10_000,
    ),
    evaluation=Perplexity(split="test"),
)
