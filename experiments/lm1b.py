"""MDLM on One Billion Words, one padded sentence per row: the setting of the paper's table 1.

    mdlm prepare experiments/lm1b.py              # once: writes data/lm1b
    mdlm train experiments/lm1b.py --mesh.fsdp 1

Data: `recipes.lm1b_padded`: `dvruette/lm1b` of the Hugging Face hub, cleaned, bert-base-uncased
tokens, one sentence per row of 128, [CLS] sentence [SEP], padded; `pad="as_published"`: the network
attends to padding, the loss ignores it. Batch 512, constant learning rate 3e-4 after 2,500 steps,
1M steps ("33B tokens"). The data set has no validation split: no checkpoint is selected, and
`mdlm train` logs results on the test split under that name. To hold out the last sentences of the
training text for validation instead, give `--data.source.held_out_documents 30000` to
`mdlm prepare` and `mdlm train`.
Hardware: 8 GPUs of 80 GB, about four days.
Expected, *published* (test perplexity, padded): MDLM <= 27.04, SEDD <= 32.79, autoregressive
22.32 (arXiv:2406.07524, table 1). Perplexities of packed rows are not
comparable, see `lm1b_packed.py`.
"""

from mdlm.data import lm1b_padded
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import DiT
from mdlm.objectives import Nelbo
from mdlm.optim import AdamW
from mdlm.samplers import Ancestral

experiment = Experiment(
    name="lm1b",
    data=lm1b_padded(store="data/lm1b"),
    network=DiT(width=768, depth=12, heads=12, dropout=0.1),
    objective=Nelbo(reconstruction=False),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    sampler=Ancestral(steps=1000),
    train=Training(
        steps=1_000_000,
        batch_size=512,
        log_every=100,
        sample_every=50_000,
        checkpoint_every=10_000,
    ),
    evaluation=Perplexity(split="test", passes=4),
)
