"""MDLM on FineWeb-Edu, 12 layers of width 768: pretraining on web text, 8 GPUs, 1.5 days.

    mdlm prepare experiments/fineweb_edu.py --out gs://bucket/fineweb-edu  # once; streams the text
    mdlm train experiments/fineweb_edu.py --data.store gs://bucket/fineweb-edu

Data: `recipes.fineweb_edu`: the 100B-token sample, GPT-2 BPE with a mask appended, documents joined
by EOS and wrapped to rows of 1024 with BOS and EOS at their ends, the first 10,000 documents held
out. Batch 512, 200k steps of 524,288 positions: one epoch of the sample.
Hardware: 8 GPUs of 80 GB, about a day and a half; 200 GB of disk for the token store.
Expected: no perplexity is published for this split (*published* for this corpus: HellaSwag, MD4-S
30% after 200k steps, arXiv:2406.04329).
"""

from mdlm.data import fineweb_edu
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.objectives import Nelbo
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="fineweb_edu",
    data=fineweb_edu("sample-100BT", store="data/fineweb-edu"),
    network=DiT(width=768, depth=12, heads=12),
    objective=Nelbo(reconstruction=False),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500, schedule="cosine"),
    sampler=Ancestral(steps=1000),
    train=Training(
        steps=200_000,
        batch_size=512,
        log_every=100,
        eval_every=5_000,
        sample_every=20_000,
        checkpoint_every=2_000,
    ),
)
