"""MDLM on OpenWebText, 12 layers of width 768: the setting of the paper's table 2.

    mdlm prepare experiments/owt_small.py                     # once: writes data/openwebtext
    mdlm train experiments/owt_small.py                       # one machine, all its devices
    mdlm train experiments/owt_small.py --mesh.fsdp 8         # parameters split over 8

Data: `recipes.openwebtext`: `Skylion007/openwebtext` of the Hugging Face hub, GPT-2 BPE with a mask
appended (vocabulary 50,258), documents joined by EOS and wrapped to rows of 1024 with BOS and EOS
at their ends, the last 100,000 documents held out. Batch 512, constant learning rate 3e-4 after
2,500 steps, dropout 0.1, 1M steps ("262B tokens": half of all positions are masked).
Hardware: 8 GPUs of 80 GB, about a week; 170M parameters.
Expected, *published* (valid perplexity): MDLM <= 23.21 (<= 22.98 as re-measured by BD3-LM),
SEDD <= 24.10, autoregressive 17.54 (arXiv:2406.07524, table 2; arXiv:2503.09573, table 4).
"""

from mdlm.data import openwebtext
from mdlm.experiment import Experiment, Training
from mdlm.models import DiT
from mdlm.objectives import Nelbo
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="owt_small",
    data=openwebtext(store="data/openwebtext"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    objective=Nelbo(reconstruction=False),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    sampler=Ancestral(steps=1000),
    train=Training(
        steps=1_000_000,
        batch_size=512,
        log_every=100,
        eval_every=10_000,
        sample_every=50_000,
        checkpoint_every=5_000,
    ),
)
