"""MDLM on One Billion Words, sentences packed into rows: the setting of BD3-LM and Duo.

    mdlm prepare experiments/lm1b_packed.py       # once: writes data/lm1b-packed
    mdlm train experiments/lm1b_packed.py

Data: `recipes.lm1b_packed`: as in `lm1b.py`, but sentences are joined, [SEP] after each, and cut
into rows of 128 with [CLS] and [SEP] at their ends. Batch 512, constant learning rate 3e-4 after
2,500 steps, 1M steps of 65,536 tokens. The test split selects no checkpoint, see `lm1b.py`.
Hardware: 8 GPUs of 80 GB, about four days.
Expected, *published* (test perplexity, packed): MDLM <= 31.78, SEDD <= 32.68, autoregressive 22.83
(arXiv:2503.09573, "65B tokens"). Perplexities of padded sentences are not comparable, see
`lm1b.py`.
"""

from mdlm.data import lm1b_packed
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import Nelbo
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="lm1b_packed",
    data=lm1b_packed(store="data/lm1b-packed"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    objective=Nelbo(reconstruction=False),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    sampler=Ancestral(steps=1000),
    train=Training(
        steps=1_000_000,
        batch_size=512,
        log_every=100,
        sample_every=50_000,
        checkpoint_every=10_000,
    ),
    evaluation=Perplexity(split="test", passes=4),
)
