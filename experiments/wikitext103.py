"""MDLM on WikiText-103, 100M words of Wikipedia articles: two days on one GPU.

    mdlm prepare experiments/wikitext103.py       # once: writes data/wikitext103
    mdlm train experiments/wikitext103.py

Data: `recipes.wikitext103`: `Salesforce/wikitext` of the Hugging Face hub, raw, cleaned, GPT-2 BPE
with a mask appended, lines joined as they are and cut into rows of 512 with BOS and EOS at their
ends. Batch 128, 100k steps: about 55 epochs, hence the dropout.
Hardware: one GPU of 80 GB, about two days.
Expected: no published number is comparable (those in the literature are per word).
"""

from mdlm.data import wikitext103
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.objectives import Nelbo
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="wikitext103",
    data=wikitext103(length=512, store="data/wikitext103"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    objective=Nelbo(reconstruction=False),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500, weight_decay=0.01),
    sampler=Ancestral(steps=512),
    train=Training(
        steps=100_000,
        batch_size=128,
        log_every=100,
        eval_every=5_000,
        sample_every=20_000,
        checkpoint_every=5_000,
    ),
)
