"""Fine-tuning on a task of GLUE: a BERT, before or after training it with diffusion.

    mdlm train glue --init-from runs/bert_mdlm --task mrpc --out runs/mrpc
    mdlm eval runs/mrpc

`task` is cola, sst2, mrpc, qqp, stsb, mnli, qnli or rte (arXiv:1804.07461). The network of the run
named by --init-from gets a fresh head on the first token. Nothing is noised; validation has the
metrics of the task with their standard errors, and `mdlm eval --split test` those of MNLI's
mismatched split.

From MDLM (arXiv:2406.07524, appendix D.6): 16 rows a step, three epochs, a learning rate of 2e-5,
and otherwise the defaults of a script of Hugging Face, in which the rate falls linearly to 0, rows
have 128 tokens and nothing decays. Ours: dropout of 0.1, as in BERT. Steps are those of three
epochs of the whole task: give --train.steps for other data (--data.source.path). docs/glue.md has a
sweep of learning rates.
"""

from dataclasses import replace

from mdlm.data import Glue, GlueTask, SentenceData, Sentences
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.models import Pooled
from mdlm.objectives import Classification, Regression
from mdlm.optim import AdamW


def experiment(base: Experiment, task: GlueTask = "mrpc") -> Experiment:
    source, batch_size = Glue(task=task), 16
    classes, rows = len(source.form.labels), source.form.rows
    epoch = -(-rows // batch_size)
    return replace(
        base,
        name=f"glue_{task}",
        data=SentenceData(
            source=source, tokenizer=base.data.tokenizer, packing=Sentences(length=128)
        ),
        network=replace(base.network, dropout=0.1),
        head=Pooled(outputs=classes or 1),
        objective=Classification() if classes else Regression(),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=0, schedule="wsd", cooldown=1.0),
        train=Training(
            steps=3 * epoch,
            batch_size=batch_size,
            ema_decay=0.0,
            eval_every=epoch,
            eval_rows=0,
            best="nats per row" if classes else "squared error",
        ),
        evaluation=Perplexity(passes=1, batch_size=64),
    )
