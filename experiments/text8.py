"""MDLM on text8, 100M characters of Wikipedia: evaluated in bits per character.

    mdlm prepare experiments/text8.py             # once: writes data/text8
    mdlm train experiments/text8.py

Data: `recipes.text8`: http://mattmahoney.net/dc/text8.zip in the working folder; 27 symbols; the
first 90M characters for training, the next 5M for validation, the last 5M for testing. Rows are
consecutive pieces of 256 characters, without special tokens. 12 layers of width 768, 1M steps of
512 rows.
Hardware: 8 GPUs, or a TPU slice of 16; about two days.
Expected, *published* (test, bits per character): MD4 1.37, SEDD 1.39, D3PM absorbing 1.45,
autoregressive 1.23 (arXiv:2406.04329, table 2).
"""

from mdlm.data import text8
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="text8",
    data=text8(store="data/text8"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.05),
    optimizer=AdamW(learning_rate=5e-4, warmup_steps=2000, schedule="cosine", weight_decay=0.03),
    sampler=Ancestral(steps=1000),
    train=Training(
        steps=1_000_000,
        batch_size=512,
        log_every=100,
        eval_every=10_000,
        sample_every=50_000,
        checkpoint_every=10_000,
    ),
)
