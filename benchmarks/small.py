"""A small experiment on made-up text, for benchmarks of the course of a run."""

import random
from pathlib import Path

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards make toxic brew".split()
NAME = "small.py"
EXPERIMENT = '''\
"""A small run."""

from mdlm.data import TextData
from mdlm.data import Wrap
from mdlm.data import TextFiles
from mdlm.data import Bytes
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="small",
    data=TextData(
        source=TextFiles(train="text.txt"),
        tokenizer=Bytes(),
        packing=Wrap(length=64, row_specials=False),
    ),
    network=DiT(width=64, depth=2, heads=2, cond_dim=16),
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=20),
    sampler=Ancestral(steps=4),
    train=Training(steps=100, batch_size=16, ema_decay=0.9, log_every=1, eval_rows=16),
)
'''


def prepare(folder: Path) -> None:
    """Creates a folder with the experiment and its text."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    text = "\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(200))
    (folder / "text.txt").write_text(text + "\n", encoding="utf-8")
    (folder / NAME).write_text(EXPERIMENT, encoding="utf-8")


def words(**training: int | float) -> list[str]:
    """The arguments of `mdlm train` in such a folder."""
    return [NAME, *(word for k, v in training.items() for word in (f"--train.{k}", str(v)))]
