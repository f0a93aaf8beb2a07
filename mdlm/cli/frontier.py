"""`mdlm frontier`."""

import argparse
import json
import sys
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mdlm.cli.arguments import add_run, also_opened, opened, real, seed, whole, writable
from mdlm.cli.command import Changes, Command
from mdlm.cli.frontier_picture import picture
from mdlm.cli.frontier_sweep import FOLDER, Made, Point, points_of, texts_of
from mdlm.cli.frontier_table import REAL, Row, latex, table
from mdlm.cli.other_text import add_other_text, reading, split_of
from mdlm.cli.progress import Progress
from mdlm.cli.sample import MOST
from mdlm.errors import InputError
from mdlm.files import finite, write

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.evals.generated.judge import Judge, Judged
    from mdlm.evals.generated.judge import Text as Documents
    from mdlm.run import Run


def run(args: Namespace, _: Changes) -> int:
    from mdlm.generation.windows import window_of

    check_options(args)
    settings = reading(args)
    plot = None if args.plot is None else writable(args.plot)
    run = opened(args)
    length = args.length or window_of(run.experiment.data.packing, run.model).room
    points = points_of(args, run)
    plot = plot or run.folder.path / f"{FOLDER}.png"
    other = None if args.judge is None else also_opened(args, args.judge)
    with Progress() as progress:
        judge = judge_of(args, run, other, progress)  # of the run's own text, so before --data
        args.split = split_of(args, run, settings)
        real = [
            judged_texts(args, judge, REAL, own, progress) for own in real_of(args, run, length)
        ]
        made = [texts_of(args, run, point, length, progress) for point in points]
        rows = rows_of(args, judge, points, made, real, progress)
    result = {
        "run": str(run.folder.path),
        "step": run.step,
        "protocol": protocol(args, judge, run, length, rows),
        "rows": [row.as_json() for row in rows],
    }
    title = f"{run.folder.path}, step {run.step}\njudge: {judge.protocol.split(';')[0]}"
    write(plot, picture(rows, title))
    content = json.dumps(finite(result), indent=1)
    write(run.folder.path / FOLDER / "results.json", content + "\n")
    if args.json:
        print(content)
    elif args.latex:
        print(latex(rows))
    else:
        print(f"{run.folder.path}, step {run.step}")
        print("\n".join(result["protocol"]))
        print(table(rows))
    print(f"{plot}: perplexity against entropy", file=sys.stderr)
    return 0


def check_options(args: Namespace) -> None:
    """Raises InputError if an option is out of range or does not go with another."""
    from mdlm.config.component_text import from_text
    from mdlm.samplers import Sampler

    if args.json and args.latex:
        raise InputError("--json: not allowed with --latex; leave one out")
    least = {"--num": (args.num, 2), "--length": (args.length, 1), "--batch": (args.batch, 1)}
    for option, (value, low) in least.items():
        if value is not None and not low <= value <= MOST:
            raise InputError(f"{option} {value}: must be from {low} to {MOST:,}")
    for option, value in {
        "--context": args.context,
        "--context-stride": args.context_stride,
    }.items():
        if value is not None and args.judge is None:
            raise InputError(f"{option} {value}: allowed with --judge RUN; n-grams have their own")
    for text in args.sampler or ():
        from_text(text, Sampler, f"--sampler {text}")


def judge_of(args: Namespace, run: "Run", other: "Run | None", progress: Progress) -> "Judge":
    """Returns the judge. Raises InputError if the run to judge by is no judge, or has no text to
    count n-grams of."""
    if other is not None:
        return other.judge(context=args.context, stride=args.context_stride)
    progress.stage("reading the training split", 0, 0)
    try:
        return run.ngram_judge(report=progress.bar("counting n-grams", "orders"))
    except InputError as error:
        raise InputError(
            f"no n-grams of the training text: {error}; name an autoregressive run with --judge RUN"
        ) from error


def real_of(args: Namespace, run: "Run", length: int) -> "list[list[Documents]]":
    """Returns two sets of real texts, apart from each other; sets that the split is too small for
    have fewer texts, or none."""
    from mdlm.generation.real_texts import real_texts

    data = run.experiment.data
    try:
        rows = getattr(run.dataset, args.split).rows
    except InputError as error:
        print(f"mdlm: no real text to compare with: {error}", file=sys.stderr)
        return [[], []]
    drawn = real_texts(
        rows, data.packing, run.tokenizer, num=2 * args.num, length=length, seed=args.seed
    )
    texts: Any = [text.pieces for text in drawn]
    few = min(args.num, len(texts))
    if few < args.num:
        print(f"mdlm: the {args.split} split has {few} texts of this length", file=sys.stderr)
    return [texts[:few], texts[few:]]


def judged_texts(
    args: Namespace, judge: "Judge", name: str, texts: "list[Documents]", progress: Progress
) -> "Judged | None":
    """Returns what the judge says of texts; None if there are fewer than two. Raises InputError if
    it cannot read them."""
    from mdlm.evals.generated.judge import judged

    if len(texts) < 2:
        return None
    try:
        return judged(judge, texts, args.ends, progress.bar(f"judging {name}", "rows"))
    except InputError as error:
        raise InputError(f"{name}, {error}") from error


def rows_of(
    args: Namespace,
    judge: "Judge",
    points: Sequence[Point],
    made: Sequence[Made],
    real: "Sequence[Judged | None]",
    progress: Progress,
) -> list[Row]:
    """Returns the results of each point, and of real text, if there is some. MAUVE compares all
    with the first set of real texts, and this one with the second."""
    from mdlm.evals.generated.measures import measures

    def row(name: str, found: "Judged", against: "Judged | None", **more: Any) -> Row:
        bar = progress.bar(f"measuring {name}", "numbers")
        numbers = measures(found, against, units=args.units, report=bar)
        return Row(measures=numbers, texts=len(found.texts), unknown=found.unknown, **more)

    truth, other = real
    rows = []
    for point, own in zip(points, made, strict=True):
        found: Any = judged_texts(args, judge, point.name, own.texts, progress)
        costs: Any = {"nfe": own.nfe, "tokens_per_second": own.tokens / (own.seconds or 1)}
        rows.append(row(point.name, found, truth, settings=point.settings, **costs))
    if truth is not None:
        rows.append(row(REAL, truth, other))
    return rows


def protocol(
    args: Namespace, judge: "Judge", run: "Run", length: int, rows: Sequence[Row]
) -> list[str]:
    """Returns lines that say how the numbers are measured."""
    from mdlm.evals.generated.halves import HALVES
    from mdlm.evals.generated.mauve import clusters_of
    from mdlm.evals.scorer import other_text

    ends = {"none": "not scored", "first": "the first scored", "all": "scored"}[args.ends]
    unknown = max(row.unknown for row in rows)
    text = other_text(run.dataset.data, run.experiment.data)
    lines = [
        f"judge: {judge.protocol}",
        f"texts decoded, then retokenised for the judge; end tokens read, {ends}"
        + (f"; up to {unknown:.2%} of the tokens unknown to the judge" if unknown else ""),
        f"{args.num} texts of {length} tokens, seed {args.seed}; {REAL}:"
        f" {text}{args.split} split; distinct, repetition, self-BLEU of {args.units}",
        f"+-: standard error over the texts, {HALVES} random halves",
    ]
    if any(row.measures["MAUVE"].value is not None for row in rows):
        clusters = clusters_of(min(row.texts for row in rows))
        lines.append(f"MAUVE: the judge's features, {clusters} clusters, against the {REAL}")
    return [part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent="  ")]


FRONTIER_HELP = """\
examples:
  mdlm frontier runs/quickstart --steps 16 64 256 --temperature 0.8 1.0
  mdlm frontier runs/owt_small --steps 64 256 1024 --judge runs/gpt2 --num 1000
  mdlm frontier runs/owt_small --sampler "Ancestral(steps=64)" "Remask(steps=64)" --top-p 0.9 1
  mdlm frontier runs/shakespeare --temperature 0.7 0.8 0.9 1.0 --json

Generates texts with each combination of the settings and prints one row for each: perplexity under
a judge, entropy, distinct n-grams, repetition, self-BLEU, MAUVE, cost, all with standard errors
over the texts; and the same for real text. Perplexity alone says little: texts that repeat
themselves have a low one. So the picture shows it against the entropy.

The judge is an autoregressive run (of ours, or made by `mdlm import` from a causal Hugging Face
folder); without --judge, 5-grams of the run's training text. Texts are retokenised for it. They are
kept in RUN/frontier, and reused; the same command goes on after a kill. docs/evaluation.md has the
formulas."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_run(sub)
    sub.add_argument(
        "--sampler", metavar="TEXT", nargs="+", help="samplers to compare (default: the run's)"
    )
    sub.add_argument("--steps", metavar="N", type=whole, nargs="+", help="numbers of steps")
    sub.add_argument("--temperature", metavar="T", nargs="+", help="temperatures")
    sub.add_argument("--top-p", metavar="P", type=real, nargs="+", help="values of top-p")
    sub.add_argument("--num", type=whole, default=256, help="texts of each setting (default: 256)")
    sub.add_argument(
        "--length", type=whole, help="tokens of a text (default: those of a row of the run)"
    )
    sub.add_argument("--judge", metavar="RUN", help="an autoregressive run (default: 5-grams)")
    sub.add_argument("--context", metavar="N", type=whole, help="tokens that the judge reads")
    sub.add_argument(
        "--context-stride",
        metavar="N",
        type=whole,
        help="new tokens of each context but the first (default: half of it)",
    )
    sub.add_argument(
        "--ends",
        choices=("none", "first", "all"),
        default="none",
        help="end tokens of a text that are scored: none (default), the first, or all",
    )
    sub.add_argument(
        "--units",
        choices=("words", "tokens"),
        default="words",
        help="what distinct, repetition and self-BLEU count: words (default) or the judge's tokens",
    )
    sub.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        help="split of real text (default: the run's)",
    )
    add_other_text(sub)
    sub.add_argument("--seed", type=seed, default=0, help="seed of the texts (default: 0)")
    sub.add_argument(
        "--batch", metavar="N", type=whole, help="texts at a time (default: 32 for each device)"
    )
    sub.add_argument(
        "--stride", type=whole, help="new tokens per window, for texts longer than a row"
    )
    sub.add_argument(
        "--stop-at-eos",
        action=argparse.BooleanOptionalAction,
        help="end each text at its first end token (default: if the run's rows are documents)",
    )
    sub.add_argument("--latex", action="store_true", help="print a LaTeX table, of all measures")
    sub.add_argument(
        "--plot", metavar="FILE", help="the picture, a PNG (default: frontier.png of the run)"
    )


COMMAND = Command(
    name="frontier",
    help="quality and diversity of generated text over steps and temperatures",
    epilog=FRONTIER_HELP,
    arguments=arguments,
    run=run,
    writes_files=True,
)
