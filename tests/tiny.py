"""A small experiment for tests: a text of a few sentences, a network of two thin blocks."""

from pathlib import Path

import numpy as np

from mdlm.data import Bytes, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards make toxic brew".split()


def write_text(path: Path, words: int = 4000, seed: int = 0) -> Path:
    """A text file of random words from a list of fifteen, in lines."""
    chosen = np.random.default_rng(seed).choice(WORDS, words)
    lines = [" ".join(chosen[i : i + 12]) for i in range(0, words, 12)]
    path.write_text("\n".join(lines) + "\n")
    return path


def experiment(text: Path, **changes) -> Experiment:
    """The small experiment on a text file, with fields replaced."""
    values = {
        "name": "tiny",
        "data": TextData(
            source=TextFiles(train=str(text)),
            tokenizer=Bytes(),
            packing=Wrap(length=32, row_specials=False),
        ),
        "network": DiT(width=32, depth=2, heads=2, cond_dim=16, dropout=0.1),
        "optimizer": AdamW(learning_rate=3e-3, warmup_steps=5),
        "sampler": Ancestral(steps=16),
        "train": Training(steps=20, batch_size=16, ema_decay=0.9, log_every=5),
    }
    return Experiment(**{**values, **changes})


FILE = '''\
"""A small experiment."""

from mdlm.data import Bytes, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="tiny",
    data=TextData(
        source=TextFiles(train={text!r}),
        tokenizer=Bytes(),
        packing=Wrap(length=32, row_specials=False),
    ),
    network=DiT(width=32, depth=2, heads=2, cond_dim=16, dropout=0.1),
    optimizer=AdamW(learning_rate=3e-3, warmup_steps=5),
    sampler=Ancestral(steps=16),
    train=Training(
        steps=20, batch_size=16, ema_decay=0.9, log_every=5, eval_every=10, checkpoint_every=10
    ),
)
'''
