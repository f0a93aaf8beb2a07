"""MDLM on the characters of Shakespeare (1.1 MB): a small benchmark, some minutes on one GPU.

    mdlm train experiments/shakespeare.py --data.source.train tinyshakespeare.txt

Data: the 1.1 MB file of karpathy/char-rnn, which is not part of this repository; 90% for
training, 5% for validation, 5% for testing, split at line breaks. Rows of 256 characters,
wrapped, without BOS and EOS.
Hardware: one GPU, some minutes; two CPU cores, about an hour. No published number is comparable
(others differ in split and protocol).
"""

from mdlm.data import Characters, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="shakespeare",
    data=TextData(
        source=TextFiles(train="tinyshakespeare.txt"),
        tokenizer=Characters(),
        packing=Wrap(length=256, row_specials=False),
    ),
    network=DiT(width=384, depth=6, heads=6, dropout=0.1),
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=200, schedule="cosine", weight_decay=0.01),
    sampler=Ancestral(steps=256),
    train=Training(
        steps=5000,
        batch_size=64,
        ema_decay=0.999,
        eval_every=500,
        sample_every=1000,
        checkpoint_every=1000,
    ),
)
