"""`mdlm import`."""

import argparse
from pathlib import Path

from mdlm.cli.common import Command, add_experiment, experiment_of


def run(args: argparse.Namespace, changes: list[tuple[str, str]]) -> int:
    from mdlm.experiment.shipped import located
    from mdlm.interop.importing import import_weights

    experiment = experiment_of(args, changes)
    parameters = import_weights(
        args.weights,
        experiment,
        Path(args.out),
        source=located(args.experiment).read_text(),
        overrides=changes,
        dtype=args.dtype,
    )
    print(f"{args.out}: {parameters:,} parameters from {args.weights}")
    return 0


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("weights", help=".safetensors in the layout of the MDLM repository")
    add_experiment(sub)
    sub.add_argument("--out", required=True, help="run folder to make")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights that are kept (default: as in the file)",
    )


IMPORT_HELP = """\
examples:
  mdlm import mdlm.safetensors experiments/owt_small.py --out runs/published
  mdlm import mdlm.safetensors experiments/owt_small.py --out runs/half --dtype bfloat16

The folder holds weights and no training state. `mdlm eval` and `mdlm sample` use them in their
dtype; `mdlm train EXPERIMENT --out` that folder begins with them at step 0, in float32, as does
--init-from that folder for another run."""


COMMAND = Command(
    name="import",
    help="make a run folder from published MDLM weights",
    epilog=IMPORT_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
)
