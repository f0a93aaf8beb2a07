"""`mdlm blanks`."""

import argparse
import json
import textwrap
from pathlib import Path

from mdlm.cli.arguments import add_run, also_opened, opened, seed, whole
from mdlm.cli.command import Changes, Command
from mdlm.cli.eval import keep
from mdlm.cli.other_text import add_other_text, reading, split_of
from mdlm.cli.progress import Progress
from mdlm.cli.sampler_options import add_sampler, sampler_of
from mdlm.files import finite

LEFT_ONLY = (
    "This run's network goes from left to right: a blank is conditioned on what is on its left "
    "alone, and filled without looking at what follows (its block)."
)


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.evals.blanks import Blanks, table

    how = Blanks(
        lengths=tuple(dict.fromkeys(args.blank)),
        at=tuple(dict.fromkeys(args.at)),
        num=args.num,
        orders=args.orders,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    args.temperature, settings = args.temperature or "0.0", reading(args)
    run = opened(args)
    verifier = also_opened(args, args.verifier) if args.verifier else None
    sampler, split = sampler_of(args, run), split_of(args, run, settings)
    with Progress(quiet=False) as progress:
        cells = run.blanks(
            how,
            split=split,
            sampler=sampler,
            verifier=verifier,
            report=progress.bar("blanks", "steps"),
        )
    metrics = [metric for cell in cells for metric in cell.metrics]
    earlier = keep(Path(args.run_folder), run.step, metrics)
    if args.json:
        print(json.dumps(finite([vars(metric) for metric in metrics]), indent=1))
        return 0
    print(f"{args.run_folder}, step {run.step}; in brackets: standard error over rows")
    likely, filled = list(cells[0].nats.values())[0].protocol, cells[0].exact.protocol
    notes = [f"nats per token: {likely}", f"fillings: {filled}"]
    if "both" not in cells[0].nats:
        notes.append(LEFT_ONLY)
    print("\n".join(textwrap.fill(note, 80) for note in notes), end="\n\n")
    print(table(cells))
    if earlier:
        print(f"  before: {len(earlier)} of these numbers, in evaluations.jsonl")
    return 0


BLANKS_HELP = """\
examples:
  mdlm blanks runs/quickstart
  mdlm blanks runs/quickstart --split test --blank 1 8 --at middle --num 256
  mdlm blanks runs/llada --data text.txt
  mdlm blanks runs/quickstart --sampler "Parallel(order=\\"confidence\\")" --orders 8

Rows of a split lose so many tokens at a place, and three things are measured with standard errors:
how likely these tokens are, in nats per token, given the tokens on both sides, on the left, or
none; what the text on the right, and all the text, is worth (gain over left side, over nothing);
and how often a filling writes exactly the tokens that were there, or each of them. Given tokens are
kept to the letter, which is checked too.

Blanks are filled at temperature 0 unless --temperature says otherwise. Autoregressive and block
diffusion runs are conditioned on the left side alone (docs/evaluation.md)."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_run(sub)
    sub.add_argument("--split", choices=("train", "valid", "test"), help="default: the run's")
    add_other_text(sub)
    sub.add_argument(
        "--blank",
        metavar="N",
        type=whole,
        nargs="+",
        default=[1, 4, 16],
        help="tokens of a blank (default: 1 4 16)",
    )
    sub.add_argument(
        "--at",
        choices=("begin", "middle", "end"),
        nargs="+",
        default=["begin", "middle", "end"],
        help="places in the text of a row (default: all three)",
    )
    sub.add_argument("--num", type=whole, default=64, help="rows of the split (default: 64)")
    sub.add_argument(
        "--orders",
        type=whole,
        default=2,
        help="random orders of the tokens of a blank, for its likelihood (default: 2)",
    )
    sub.add_argument(
        "--seed", type=seed, default=0, help="seed of rows, orders and fillings (default: 0)"
    )
    sub.add_argument(
        "--batch-size", type=whole, default=32, help="rows evaluated at a time (default: 32)"
    )
    add_sampler(sub)


COMMAND = Command(
    name="blanks",
    help="evaluate infilling: likelihood and exact match of blanks in held-out rows",
    epilog=BLANKS_HELP,
    arguments=arguments,
    run=run,
)
