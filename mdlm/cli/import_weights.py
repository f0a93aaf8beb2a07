"""`mdlm import`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mdlm.cli.common import Command, experiment_of

if TYPE_CHECKING:  # what a `--help` need not wait for
    pass


def run(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.interop.importing import import_weights

    experiment = experiment_of(args, changes)
    parameters = import_weights(
        args.weights,
        experiment,
        Path(args.out),
        source=Path(args.experiment).read_text(),
        overrides=changes,
        dtype=args.dtype,
    )
    print(f"{args.out}: {parameters:,} parameters from {args.weights}")
    return 0


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("weights", help=".safetensors in the layout of the MDLM repository")
    sub.add_argument("experiment", help="an experiment file whose network has their sizes")
    sub.add_argument("--out", required=True, help="run folder to make")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights that are kept (default: as in the file)",
    )


COMMAND = Command(
    name="import",
    help="make a run folder from published MDLM weights",
    arguments=arguments,
    run=run,
    takes_settings=True,
)
