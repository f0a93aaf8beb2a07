"""MDLM on 40 MB of English books, 12 minutes on a CPU core: the baseline for trying changes.

    mdlm train experiments/books.py --data.source.train 'books/train-*.txt.gz' \\
        --data.source.valid books/valid.txt.gz --data.source.test books/test.txt.gz

Data: text files of whole books, separated by two blank lines; byte-level BPE of 4,096 tokens
trained on them; rows of 128 tokens, wrapped, without BOS and EOS. The recipe is that of MDLM
(arXiv:2406.07524, appendix): AdamW at a constant learning rate, dropout 0.1, adaLN, LayerNorm,
GELU, low-discrepancy times. Its learning rate and warm-up are tuned for runs of minutes (LOG.md).
Hardware: one CPU core, 12 minutes.
"""

from mdlm.data import BPE, TextData, TextFiles, Wrap
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="books",
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
    network=DiT(width=128, depth=4, heads=4, dropout=0.1),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=100),
    sampler=Ancestral(steps=128),
    train=Training(steps=2000, batch_size=16, eval_every=250, eval_rows=256),
    evaluation=Perplexity(passes=2, batch_size=64),
)
