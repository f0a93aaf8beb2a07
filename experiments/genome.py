"""MDLM on the human genome, one token per base: data of the paper's table 6, another network.

    mdlm prepare experiments/genome.py            # once: writes data/hg38
    mdlm train experiments/genome.py

Data: `recipes.genome`: HG38 in the intervals and splits of Basenji, as HyenaDNA and Caduceus use
them; the vocabulary A C G T N; rows of 1024. Put `hg38.ml.fa` and `human-sequences.bed` (links in
Caduceus' README) into the working folder; the token store takes 71 GB. Batch 1024, 10,000 steps of
1M bases. Training evaluates on the validation intervals, `mdlm eval` on the test intervals. For
another genome: `data=genome("mine.fa.gz", intervals=None)`.
Hardware: one GPU, some hours.
Expected, *published* (test perplexity): MDLM <= 3.199, SEDD <= 3.216, autoregressive Mamba 3.067
(arXiv:2406.07524, table 6), all with Caduceus' or Mamba's 0.5M parameters, 60,000 steps.
"""

from mdlm.data import genome
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="genome",
    data=genome(store="data/hg38"),
    network=DiT(width=128, depth=4, heads=4, cond_dim=64),
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=500, schedule="cosine", weight_decay=0.1),
    sampler=Ancestral(steps=256),
    train=Training(
        steps=10_000,
        batch_size=1024,
        ema_decay=0.999,
        eval_every=1000,
        eval_rows=4096,
        checkpoint_every=1000,
    ),
    evaluation=Perplexity(split="test", passes=4),
)
