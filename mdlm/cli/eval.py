"""`mdlm eval`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlm.cli.arguments import MANY_HELP, add_process_group, add_run, opened, whole, writable
from mdlm.cli.command import Changes, Command
from mdlm.cli.eval_modes import Evaluation, Result
from mdlm.cli.other_text import add_other_text, other_text, reading
from mdlm.cli.progress import Progress
from mdlm.cluster import process_group
from mdlm.config.ranges import LARGEST
from mdlm.errors import InputError
from mdlm.files import finite

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.data.dataset import TextData
    from mdlm.evals.nll import Metric
    from mdlm.experiment.evaluation import Perplexity
    from mdlm.experiment.experiment import Experiment
    from mdlm.objectives import Objective

ALL = "all"
"""The name of `--on` for the table of the seven texts."""


def run(args: argparse.Namespace, _: Changes) -> int:
    objective, settings = _checked(args), reading(args, allowed=not args.on)
    plot = None if args.plot is None else writable(args.plot)
    run = opened(args)
    how, data = _what(args, run.experiment, settings)
    if objective is not None:
        how = replace(how, objective=objective)
    with Progress(quiet=not process_group.is_main()) as progress:
        found = _measured(args, Evaluation(run=run, how=how, data=data, progress=progress), plot)
    if not process_group.is_main():
        return 0
    earlier = keep(Path(args.run_folder), run.step, found.metrics, found.parts)
    if args.json:
        print(json.dumps(finite(found.json), indent=1))
    elif args.latex:
        print(found.text)
    else:
        print(f"{args.run_folder}, step {run.step}")
        print(found.text)
        print("".join(f"  before: {line}\n" for line in earlier), end="")
    return 0


def _what(
    args: argparse.Namespace, run: "Experiment", settings: dict[str, Any]
) -> "tuple[Perplexity, TextData | None]":
    """Returns how to evaluate, and the data, None for the run's own or those of `--on all`."""
    how, data = run.evaluation, None
    if args.on and args.on != ALL:
        data, split = _well_known(args, run)
        how = replace(how, split=split, ngrams=False)
    elif args.data and not args.on:
        data = other_text(args, run, args.split or how.split, settings)
        how = replace(how, ngrams=False)
    return replace(
        how,
        split=args.split or how.split,
        passes=how.passes if args.passes is None else args.passes,
        batch_size=how.batch_size if args.batch_size is None else args.batch_size,
    ), data


def _measured(args: argparse.Namespace, one: Evaluation, plot: Path | None) -> Result:
    if args.on == ALL:
        return one.seven(args.data[0] if args.data else None, latex=args.latex)
    if args.levels is not None:
        return one.by_level(args.levels, plot)
    if args.steps:
        return one.by_steps(args.steps)
    if args.bracket is not None:
        return one.both_sides(args.bracket, args.rows or 0)
    return one.metrics()


def keep(
    folder: Path, step: int, metrics: "Sequence[Metric]", parts: "Sequence[Metric]" = ()
) -> list[str]:
    """Keeps the results in the run folder; returns earlier ones of the same protocols, as text,
    but not those of `parts`."""
    from mdlm.runs import evaluations

    values = [vars(metric) for metric in metrics]
    earlier = evaluations.beside(folder, step, values)
    try:
        evaluations.record(folder, step, [*values, *map(vars, parts)])
    except (OSError, InputError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"mdlm: the results are not kept in {folder}: {reason}", file=sys.stderr)
    return earlier


def _checked(args: argparse.Namespace) -> "Objective | None":
    """Checks what can be checked before the run is opened; returns the objective asked for.

    Raises InputError if an option is wrong, or does not go with another.
    """
    from mdlm.config.component_text import from_text
    from mdlm.data.text.files import matching_files
    from mdlm.evals.zero_shot import check_name
    from mdlm.objectives import Objective

    _check_modes(args)
    if args.passes is not None and args.passes < 1:
        raise InputError(f"--passes {args.passes}: must be at least 1")
    if args.batch_size is not None and args.batch_size < 0:
        raise InputError(f"--batch-size {args.batch_size}: must be at least 0")
    if args.on and args.split:
        raise InputError(
            f"--split {args.split}: not allowed with --on, which uses that data set's own split"
        )
    if args.on and args.on != ALL:
        check_name(args.on)
    is_folder = args.on and len(args.data or ()) == 1 and Path(args.data[0]).is_dir()
    if args.on == ALL and args.data and not is_folder:
        raise InputError(f"--on all --data {' '.join(args.data)}: give one folder with the texts")
    if args.data and not is_folder:
        matching_files(args.data)
    if args.objective is None:
        return None
    return from_text(args.objective, Objective, f"--objective {args.objective}")


def _check_modes(args: argparse.Namespace) -> None:
    """Raises InputError if an option that asks for another measurement is wrong, or does not go
    with another."""
    modes = {"--levels": args.levels, "--steps": args.steps, "--bracket": args.bracket}
    given = [name for name, value in modes.items() if value is not None]
    given += ["--on all"] if args.on == ALL else []
    if len(given) > 1:
        raise InputError(f"{given[0]}: not allowed with {given[1]}; give one of them at a time")
    if args.objective is not None and (args.steps or args.bracket is not None):
        raise InputError(f"--objective: not allowed with {given[0]}, which has its own")
    for option, value, least, most in (
        ("--levels", args.levels, 1, 1000),
        ("--bracket", args.bracket, 2, 4096),
        ("--rows", args.rows, 1, LARGEST),
        *(("--steps", steps, 1, LARGEST) for steps in args.steps or ()),
    ):
        if value is not None and not least <= value <= most:
            raise InputError(f"{option} {value}: must be at least {least} and at most {most}")
    for option, value, needs, there in (
        ("--plot", args.plot, "--levels", args.levels),
        ("--rows", args.rows, "--bracket", args.bracket),
        ("--latex", args.latex or None, "--on all", args.on == ALL or None),
    ):
        if value is not None and there is None:
            raise InputError(f"{option}: allowed with {needs} only")
    if args.latex and args.json:
        raise InputError("--latex: not allowed with --json")


def _well_known(args: argparse.Namespace, run: "Experiment") -> "tuple[TextData, str]":
    """Returns the data set that `--on` names, and its split."""
    from mdlm.evals.zero_shot import zero_shot

    return zero_shot(args.on, run.data.tokenizer, run.data.packing, tuple(args.data or ()))


EVAL_HELP = """\
examples:
  mdlm eval runs/owt_small
  mdlm eval runs/owt_small --split test --passes 8
  mdlm eval runs/owt_small --objective "DiscreteNelbo(steps=1000)"
  mdlm eval runs/owt_small --data letters.txt
  mdlm eval runs/owt_small --data letters.jsonl --text-field body
  mdlm eval runs/owt_small --on wikitext2
  mdlm eval runs/owt_small --on ptb --data copies/ptb      from a local copy, without the hub
  mdlm eval runs/owt_small --on ptb --data ptb.valid.txt   a file of that split, cleaned likewise
  mdlm eval runs/owt_small --on all --latex                the seven texts of the literature
  mdlm eval runs/owt_small --levels 10 --plot levels.png   what each noise level adds
  mdlm eval runs/owt_small --steps 32 64 128 256 512 1024  bounds of discrete processes
  mdlm eval runs/owt_small --bracket 8 --rows 100          how loose the bound may be

The result is a bound on the negative log-likelihood under the run's EMA parameters, on the split
that its experiment names unless an option chooses another text. Files of --data are read as the run
reads its own: --separator, --text-field, --undecodable and --clean say otherwise.

NAME is one of wikitext2, wikitext103, ptb, lm1b, lambada, ag_news, arxiv, pubmed. The text is
cleaned as in the literature, joined, and cut into rows of the run's length (docs/data.md). `all` is
a table of seven of them, with --data FOLDER from folders or files in it that are named like them.
What cannot be read is left out and named.

--levels, --steps and --bracket are explained, with their formulas, in docs/evaluation.md."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_run(sub)
    add_process_group(sub)
    sub.add_argument(
        "--split", choices=("train", "valid", "test"), help="split to evaluate (default: the run's)"
    )
    add_other_text(sub)
    sub.add_argument(
        "--on",
        metavar="NAME",
        help="evaluate on this public data set, or `all`, for zero-shot perplexities",
    )
    sub.add_argument("--latex", action="store_true", help="--on all: print a LaTeX table")
    sub.add_argument(
        "--levels",
        metavar="N",
        type=whole,
        nargs="?",
        const=10,
        help="also what each of N parts of the times adds to the bound (default: 10)",
    )
    sub.add_argument("--plot", metavar="FILE", help="--levels: draw a picture (.png)")
    sub.add_argument(
        "--steps",
        metavar="T",
        type=whole,
        nargs="+",
        help="the bounds of discrete processes of so many steps, beside the run's own",
    )
    sub.add_argument(
        "--bracket",
        metavar="K",
        type=whole,
        help="bound the likelihood from both sides, by K random orders of each row: K network calls"
        " for each of its tokens",
    )
    sub.add_argument("--rows", metavar="N", type=whole, help="--bracket: of the first N rows only")
    sub.add_argument(
        "--objective",
        metavar="TEXT",
        help='evaluate with this objective, such as "Nelbo(t_min=1e-4)"',
    )
    sub.add_argument(
        "--passes",
        type=whole,
        help="passes over the split, each with independent noise (default: the run's)",
    )
    sub.add_argument(
        "--batch-size", type=whole, help="rows evaluated at a time (default: the run's)"
    )


COMMAND = Command(
    name="eval",
    help="evaluate a run: nats per token, bits per byte, perplexity",
    epilog=EVAL_HELP + "\n" + MANY_HELP.format(command="eval"),
    arguments=arguments,
    run=run,
    many_processes=True,
)
