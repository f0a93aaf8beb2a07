"""A masked diffusion language model of the Python reference, in minutes on a laptop.

    make quickstart      (or: mdlm train experiments/quickstart.py)

Data: the language reference that Python carries, about 0.42 MB of English to train on; byte-level
BPE of 1,024 trained on it; rows of 128 tokens, wrapped, without BOS and EOS in each.
"""

from mdlm.data.dataset import TextData
from mdlm.data.packing import Wrap
from mdlm.data.sources import PythonReference
from mdlm.data.tokenizers import BPE
from mdlm.evals.nll import Perplexity
from mdlm.experiment import Experiment, Training
from mdlm.models.dit import DiT
from mdlm.objectives.nelbo import Nelbo
from mdlm.optim import AdamW
from mdlm.samplers.ancestral import Ancestral

experiment = Experiment(
    name="quickstart",
    data=TextData(
        source=PythonReference(),
        tokenizer=BPE(vocab_size=1024),
        packing=Wrap(length=128, row_specials=False),
    ),
    network=DiT(width=256, depth=4, heads=4, cond_dim=64, dropout=0.1),
    objective=Nelbo(),
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=50, schedule="wsd", cooldown=0.3),
    sampler=Ancestral(steps=128),
    train=Training(steps=400, batch_size=16, ema_decay=0.99, eval_every=100),
    evaluation=Perplexity(passes=4, ngrams=True),
)
