"""Supervised fine-tuning: a run of any method goes on to learn responses to prompts.

    mdlm train sft --init-from runs/llada --data.source.train chats.jsonl
    mdlm train sft --init-from runs/books --data.source.train pairs.jsonl --data.packing.eos once \\
        --data.packing.packed True

Network, process, objective, sampler, tokenizer and row length are those of the run named by
--init-from. A line of the file has `prompt` and `response`, or `messages`. Prompts stay clean, and
the loss is on responses alone: with `Nelbo()` this is the fine-tuning of LLaDA (arXiv:2502.09992),
with `BlockNelbo(...)` each block has a time of its own, with `Autoregressive()` it is the usual
one.
The last twentieth of the pairs is held out for validation. docs/finetuning.md has the choices.
"""

from dataclasses import replace

from mdlm.data import PairData, Pairs, Responses
from mdlm.experiment import Experiment, Perplexity, Training
from mdlm.optim import AdamW


def experiment(base: Experiment) -> Experiment:
    return replace(
        base,
        name="sft",
        data=PairData(
            source=Pairs(train="chats.jsonl"),
            tokenizer=base.data.tokenizer,
            packing=Responses(
                length=base.data.packing.length,
                bos=base.data.packing.frame[0],
                # A network that fills a canvas must learn where to end on it.
                eos="once" if base.network.attends == "causal" else "filled",
            ),
        ),
        objective=base.objective.on_data(),
        optimizer=AdamW(learning_rate=2.5e-5, warmup_steps=50, weight_decay=0.1),
        train=Training(
            steps=1000, batch_size=16, ema_decay=0.99, eval_every=100, checkpoint_every=200
        ),
        evaluation=Perplexity(passes=8, batch_size=32),
    )
