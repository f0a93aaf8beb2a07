"""`mdlm report`."""

import argparse
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING

from mdlm.cli.arguments import add_no_verify, add_trust, also_opened, seed, typed, whole, writable
from mdlm.cli.command import Changes, Command
from mdlm.cli.progress import Progress
from mdlm.errors import InputError
from mdlm.files import write
from mdlm.version import __version__

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.run import Run
    from mdlm.view.report import Compared


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.runs.kept import read
    from mdlm.view.report import Report, report

    out = writable(args.html)
    for name, least in (("passes", 1), ("rows", 0), ("samples", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least {least}")
    if args.paired and len(args.run_folders) < 2:
        raise InputError("--paired: allowed with two runs at least, whose difference it is")
    runs = [read(folder, verify=not args.no_verify) for folder in args.run_folders]
    opened, traces, differences = [], {}, None
    if args.paired or args.samples:
        opened = [also_opened(args, folder) for folder in args.run_folders]
    with Progress(quiet=False) as progress:
        if args.paired:
            differences = compared(args, opened, progress)
    if args.samples:
        for number, one in enumerate(opened):
            traces[number] = one.generate(num=args.samples, seed=args.seed, trace=True).trace
    content = Report(
        runs=runs,
        command=typed(["report", *args.run_folders, "--html", args.html]),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, mdlm {__version__}:",
        differences=differences,
        traces=traces,
    )
    write(out, report(content))
    print(f"{args.html}: {len(runs)} run{'s' if len(runs) > 1 else ''}; open it in a browser")
    return 0


def compared(args: argparse.Namespace, runs: "list[Run]", progress: Progress) -> "list[Compared]":
    """Returns the differences of all pairs of runs; each run is evaluated once at most."""
    from mdlm.evals.paired import difference, incomparable
    from mdlm.experiment.evaluation import Perplexity
    from mdlm.view.report import Compared

    sums = {}

    def of(number: int):
        if number not in sums:
            how = Perplexity(split=args.split, passes=args.passes)
            bar = progress.bar(f"evaluating {args.run_folders[number]}", "rows")
            sums[number] = runs[number].by_row(how, rows=args.rows, seed=args.seed, report=bar)
        return sums[number]

    found = []
    for first, second in combinations(range(len(runs)), 2):
        datasets = runs[first].dataset, runs[second].dataset
        reason = incomparable(*datasets, args.split)
        if reason is not None:
            found.append(Compared(first=first, second=second, found=reason))
            continue
        (a, mine), (b, theirs) = of(first), of(second)
        pair = Compared(
            first=first, second=second, found=difference(a, b), protocols=(mine, theirs)
        )
        found.append(pair)
    return found


REPORT_HELP = """\
examples:
  mdlm report runs/quickstart --html report.html
  mdlm report runs/quickstart runs/quickstart-wide --html report.html --paired --samples 2

One page, which needs no network and no other file: curves, kept evaluations (`mdlm eval`, `mdlm
blanks`), samples, settings and environment of the runs side by side. What a run folder does not
keep is named, with the command that adds it.

--paired evaluates the runs on the same rows with the same noise, and gives the differences of their
nats per token with errors over sequences. Runs whose rows differ (another tokenizer, text or
length) have no such difference. --samples generates texts and shows their denoising."""


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run_folders", metavar="RUN", nargs="+", help="run folders")
    sub.add_argument("--html", metavar="OUT", required=True, help="write the page to OUT")
    sub.add_argument(
        "--paired", action="store_true", help="evaluate differences of the runs, on the same rows"
    )
    sub.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        default="valid",
        help="split of --paired (default: valid)",
    )
    sub.add_argument(
        "--rows",
        type=whole,
        default=512,
        help="rows of the split for --paired, its first ones; 0: all (default: 512)",
    )
    sub.add_argument(
        "--passes", type=whole, default=2, help="passes of --paired over the rows (default: 2)"
    )
    sub.add_argument(
        "--samples", type=whole, default=0, metavar="N", help="generate N texts with each run"
    )
    sub.add_argument("--seed", type=seed, default=0, help="seed of noise and texts (default: 0)")
    add_trust(sub)
    add_no_verify(sub)


COMMAND = Command(
    name="report",
    help="one page about runs: curves, evaluations, differences, samples, settings",
    epilog=REPORT_HELP,
    arguments=arguments,
    run=run,
    writes_files=True,
)
