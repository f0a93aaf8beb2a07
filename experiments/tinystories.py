"""MDLM on TinyStories: a small network that learns to write whole sentences.

    mdlm prepare experiments/tinystories.py       # once: trains BPE, writes data/tinystories
    mdlm train experiments/tinystories.py

Data: `recipes.tinystories`: 2.1M stories of the Hugging Face hub, byte-level BPE of 8,192 tokens
trained on them, EOS after each, wrapped to rows of 512 with BOS and EOS at their ends. Batch 32,
20,000 steps, as in arXiv:2603.22075.
Hardware: one GPU, about two hours.
Expected: no number is published for this tokenizer.
"""

from mdlm.data import tinystories
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="tinystories",
    data=tinystories(store="data/tinystories"),
    network=DiT(width=384, depth=6, heads=6),
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=500, schedule="cosine", weight_decay=0.01),
    sampler=Ancestral(steps=256),
    train=Training(
        steps=20_000,
        batch_size=32,
        ema_decay=0.999,
        eval_every=1000,
        sample_every=2000,
        checkpoint_every=1000,
    ),
)
