"""BD3-LM (arXiv:2503.09573) on English books: diffusion in blocks of 16.

    mdlm train experiments/family/books/bd3lm.py --data.source.train 'books/train-*.txt.gz' \\
        --data.source.valid books/valid.txt.gz --data.source.test books/test.txt.gz

Masked noise within a block, conditioned on the clean blocks before it; noised and clean tokens
share one pass.
Data: as in experiments/books.py. All experiments of this folder (docs/methods.md) share data,
network size, optimizer, batch size and number of training tokens.
Hardware: one CPU core, about five minutes.
"""

from mdlm.data import BPE, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import BlockDiT
from mdlm.objectives import BlockNelbo
from mdlm.optim import Muon
from mdlm.samplers import BlockByBlock

experiment = Experiment(
    name="bd3lm",
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
    network=BlockDiT(width=128, depth=4, heads=4, norm="rms", qk_norm=True, block_size=16),
    objective=BlockNelbo(block_size=16),
    sampler=BlockByBlock(block_size=16, steps=16),
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
