"""`--data`: other text in place of that of a run, and the options that say how it is read."""

import argparse
from typing import TYPE_CHECKING, Any

from mdlm.errors import InputError

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.data.dataset import TextData
    from mdlm.experiment.evaluation import Split
    from mdlm.experiment.experiment import Experiment
    from mdlm.run import Run


def add_other_text(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--data", metavar="FILE", nargs="+", help="these text files instead of the run's text"
    )
    sub.add_argument(
        "--separator", metavar="TEXT", help="--data: text between the documents of a .txt file"
    )
    sub.add_argument(
        "--text-field", metavar="NAME", help="--data: field with the text, in .jsonl and .parquet"
    )
    sub.add_argument(
        "--undecodable",
        metavar="WHAT",
        help="--data: refuse documents that are not UTF-8, or drop them",
    )
    sub.add_argument("--clean", metavar="TEXT", help='--data: cleaning, such as "PTB()", or none')


def reading(args: argparse.Namespace, *, allowed: bool = True) -> dict[str, Any]:
    """Returns the settings that say how files of `--data` are read, if other than in the run.

    Raises InputError if there are such settings and no such files, or a value is not allowed.
    """
    from mdlm.config.component_text import from_text, hints_of
    from mdlm.data.sources import READING, TextFiles

    given = {name: value for name in READING if (value := getattr(args, name)) is not None}
    settings = {}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if not allowed or not args.data:
            words = "" if allowed else ", without --on"
            raise InputError(f"{option} {value}: allowed with --data FILE{words}")
        settings[name] = from_text(value, hints_of(TextFiles)[name], f"{option} {value}")
    return settings


def other_text(
    args: argparse.Namespace, run: "Experiment", split: str, settings: dict[str, Any]
) -> "TextData":
    """Returns the files of `--data` as data that are read as those of the run."""
    from mdlm.data.mixture import other_data

    try:
        return other_data(run.data, tuple(args.data), split, **settings)
    except ValueError as error:
        raise InputError(f"--data {' '.join(args.data)}: {error}") from error


def split_of(args: argparse.Namespace, run: "Run", settings: dict[str, Any]) -> "Split":
    """Returns the split that a command reads, and has the run read the files of `--data` as that
    split, if there are any. `settings` are those of `reading`."""
    split = args.split or run.experiment.evaluation.split
    if args.data:
        run.dataset = other_text(args, run.experiment, split, settings).load(run.folder.data)
    return split
