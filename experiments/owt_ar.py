"""An autoregressive transformer on OpenWebText: the baseline of MDLM's table 2.

    mdlm prepare experiments/owt_ar.py      # once, for owt_small too: writes data/openwebtext
    mdlm train experiments/owt_ar.py

Data: those of `owt_small.py`, as are network size, optimizer and protocol. Half as many steps,
0.5M, train on the same number of tokens: the loss counts every position, not only the masked half.
Hardware: 8 GPUs of 80 GB, about three days; 162M parameters.
Expected, *published* (valid perplexity): 17.54 (arXiv:2406.07524, table 2).
"""

from mdlm.data import openwebtext
from mdlm.experiment import Experiment, Training
from mdlm.models import CausalTransformer
from mdlm.objectives import Autoregressive
from mdlm.optim import AdamW
from mdlm.samplers import LeftToRight

experiment = Experiment(
    name="owt_ar",
    data=openwebtext(store="data/openwebtext"),
    network=CausalTransformer(width=768, depth=12, heads=12, dropout=0.1),
    objective=Autoregressive(),
    optimizer=AdamW(learning_rate=3e-4, warmup_steps=2500),
    sampler=LeftToRight(),
    train=Training(
        steps=500_000,
        batch_size=512,
        log_every=100,
        eval_every=10_000,
        sample_every=50_000,
        checkpoint_every=5_000,
    ),
)
