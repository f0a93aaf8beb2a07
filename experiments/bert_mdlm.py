"""MDLM from a pre-trained BERT: an imported BERT goes on to train with the diffusion bound.

    mdlm import bert-base-uncased --out runs/bert
    mdlm train bert_mdlm --init-from runs/bert --data.store data/c4/store   # see docs/glue.md
    mdlm sample runs/bert_mdlm

This is the representation learning of MDLM (arXiv:2406.07524, section 5.1 and appendix D.6). From
the paper: C4 in rows of 128 tokens, one document each, padded and truncated, bert-base-uncased
tokens; AdamW, 2,500 steps of warm-up from 0 to 5e-5, betas 0.95 and 0.999, 512 rows a step, 5,000
steps; the log-linear schedule. Its network, a MosaicBERT, had been trained on C4 by masked language
modelling. Ours: any BERT or ModernBERT; a constant rate after the warm-up, as in the paper's other
runs (it does not say for this one); the reconstruction term in the loss; no dropout; the EMA.

What follows is `glue` (docs/glue.md). Published: the bound on C4's validation split falls from a
perplexity of 78 to 35.
"""

from dataclasses import replace

from mdlm.data import Pad, TextData, TextFiles
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.objectives import Nelbo
from mdlm.optim import AdamW
from mdlm.parameterizations import Subs
from mdlm.processes import Masked
from mdlm.samplers import Ancestral
from mdlm.schedules import LogLinear


def experiment(base: Experiment) -> Experiment:
    return replace(
        base,
        name="bert_mdlm",
        head=None,
        data=TextData(
            source=TextFiles(
                train="data/c4/c4-train.*.jsonl.gz", valid="data/c4/c4-validation.*.jsonl.gz"
            ),
            tokenizer=base.data.tokenizer,
            packing=Pad(length=128),
        ),
        process=Masked(schedule=LogLinear()),
        parameterization=Subs(),
        objective=Nelbo(),
        time_condition="none",
        sampler=Ancestral(steps=128),
        optimizer=AdamW(learning_rate=5e-5, warmup_steps=2500, b1=0.95, b2=0.999),
        train=Training(
            steps=5000, batch_size=512, ema_decay=0.999, eval_every=500, checkpoint_every=1000
        ),
        evaluation=Perplexity(passes=4, batch_size=128),
    )
