"""`mdlm score`."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from mdlm.cli.arguments import (
    MANY_HELP,
    add_process_group,
    add_run,
    opened,
    real,
    seed,
    whole,
    writable,
)
from mdlm.cli.command import Changes, Command
from mdlm.cli.progress import Progress
from mdlm.cluster import process_group
from mdlm.errors import InputError
from mdlm.files import finite, write

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.data.pairs import Pair
    from mdlm.evals.log_likelihood import LogLikelihood


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.data.pairs import Fields, read_pairs
    from mdlm.evals.log_likelihood import Passes, table_of, totals

    how = Passes(passes=args.passes, sure=args.sure)
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 1")
    out = None if args.out is None else writable(args.out)
    fields = Fields(
        prompt=args.prompt_field, response=args.response_field, messages=args.messages_field
    )
    pairs = read_pairs(args.file, fields, split=args.split, config=args.config)
    run = opened(args)
    with Progress(quiet=not process_group.is_main()) as progress:
        found = run.log_likelihood(
            pairs,
            by=args.by,
            passes=how.passes,
            sure=how.sure,
            seed=args.seed,
            batch_size=args.batch_size,
            report=progress.bar("scoring", "pairs"),
        )
    if not process_group.is_main():
        return 0
    lines = [_line(pair, one) for pair, one in zip(pairs, found, strict=True)]
    if out is not None:
        write(out, "".join(json.dumps(finite(line)) + "\n" for line in lines))
    if args.sure is not None:
        _say_unsure(found, args.sure)
    if args.json:
        metrics = [vars(metric) for metric in totals(found)]
        print(json.dumps(finite({"pairs": lines, "total": metrics}), indent=1))
        return 0
    print(f"{args.run_folder}, step {run.step}")
    print(table_of([pair.where for pair in pairs], found))
    return 0


def _line(pair: "Pair", found: "LogLikelihood") -> dict[str, Any]:
    return {"where": pair.where, "log_likelihood": found.value, **_but_value(found)}


def _but_value(found: "LogLikelihood") -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if name != "value"}


def _say_unsure(found: "list[LogLikelihood]", sure: float) -> None:
    """Says how many pairs have a larger error after as many passes as are made at most."""
    unsure = [one for one in found if one.stderr is not None and one.stderr > sure]
    if unsure:
        passes = max(one.passes for one in unsure)
        print(
            f"mdlm: {len(unsure)} of {len(found)} standard errors are above --sure {sure:g} after"
            f" {passes} passes",
            file=sys.stderr,
        )


SCORE_HELP = """\
examples:
  mdlm score runs/owt_small answers.jsonl
  mdlm score runs/llada answers.jsonl --passes 128 --out scores.jsonl
  mdlm score runs/owt_small answers.jsonl --sure 0.05
  mdlm score runs/owt_small answers.jsonl --by nelbo
  mdlm score runs/owt_small data/questions --split test --prompt-field question \\
    --response-field answer

FILE is a .jsonl file (also .gz), each line with the fields prompt and response, or messages, which
the chat template of the run divides: the last one, of the assistant, is the response. Or it is a
data set: a folder, or a name on the Hugging Face hub.

Each response gets log p(response | prompt) in nats with its standard error, and its number of
tokens. The prompt is read, and neither noised nor scored; no token is added that ends a response.
Causal networks and block diffusion with blocks of one token give the exact value. Others give a
lower bound: by counts of masked tokens (LLaDA's estimate), or minus the NELBO that the run reports.
The noise levels of a response are stratified over its passes. --sure adds passes. What is drawn
follows from the seed, the number of the line and the pass (docs/evaluation.md)."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_run(sub)
    sub.add_argument("file", metavar="FILE", help="prompts and responses: .jsonl, or a data set")
    add_process_group(sub)
    sub.add_argument(
        "--by",
        choices=("counts", "nelbo"),
        help="the bound, where the network has no exact value (default: counts where it fits)",
    )
    sub.add_argument(
        "--passes", type=whole, default=32, help="network passes for each pair, even (default: 32)"
    )
    sub.add_argument(
        "--sure", type=real, metavar="NATS", help="add passes until each standard error is so small"
    )
    sub.add_argument("--out", metavar="FILE", help="write a line of JSON for each pair to FILE")
    sub.add_argument("--prompt-field", metavar="NAME", default="prompt", help="field of the prompt")
    sub.add_argument(
        "--response-field", metavar="NAME", default="response", help="field of the response"
    )
    sub.add_argument(
        "--messages-field", metavar="NAME", default="messages", help="field of a conversation"
    )
    sub.add_argument("--split", default="test", help="split of a data set (default: test)")
    sub.add_argument("--config", metavar="NAME", help="part of a data set that has several")
    sub.add_argument("--seed", type=seed, default=0, help="seed of the noise (default: 0)")
    sub.add_argument(
        "--batch-size", type=whole, default=32, help="rows evaluated at a time (default: 32)"
    )


COMMAND = Command(
    name="score",
    help="log-likelihoods of responses given their prompts, with standard errors",
    epilog=SCORE_HELP + "\n" + MANY_HELP.format(command="score"),
    arguments=arguments,
    run=run,
    many_processes=True,
)
