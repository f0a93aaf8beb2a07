"""`mdlm import`."""

import argparse
from pathlib import Path

from mdlm.cli.arguments import add_experiment, experiment_of
from mdlm.cli.command import Changes, Command
from mdlm.errors import InputError


def run(args: argparse.Namespace, changes: Changes) -> int:
    from mdlm.experiment.loading import source_of
    from mdlm.interop.importing import import_weights

    if not args.out:
        raise InputError("--out '': is no name of a folder")
    experiment = experiment_of(args, changes)
    parameters = import_weights(
        args.weights,
        experiment,
        Path(args.out),
        source=source_of(args.experiment),
        overrides=changes,
        dtype=args.dtype,
    )
    print(f"{args.out}: {parameters:,} parameters from {args.weights}")
    return 0


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("weights", help="a .safetensors file in the layout of the MDLM repository")
    add_experiment(sub)
    sub.add_argument("--out", required=True, help="run folder to create")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype in which the weights are stored (default: as in the file)",
    )


IMPORT_HELP = """\
examples:
  mdlm import mdlm.safetensors experiments/owt_small.py --out runs/published
  mdlm import mdlm.safetensors experiments/owt_small.py --out runs/half --dtype bfloat16

The experiment must describe the network of the weights. The new folder holds weights and no
training state. `mdlm eval` and `mdlm sample` use the weights in their stored dtype. To train from
them in float32, from step 0, name the folder as --out or --init-from of `mdlm train`."""


COMMAND = Command(
    name="import",
    help="create a run folder from published MDLM weights",
    epilog=IMPORT_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    writes_files=True,
)
