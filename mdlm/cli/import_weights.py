"""`mdlm import`."""

import argparse
from pathlib import Path

from mdlm.cli.arguments import complete_experiments, experiment_of, typed
from mdlm.cli.command import Changes, Command
from mdlm.errors import InputError

FILES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")


def run(args: argparse.Namespace, changes: Changes) -> int:
    if not args.out:
        raise InputError("--out '': is no name of a folder")
    is_file = Path(args.checkpoint).is_file() or args.checkpoint.endswith(FILES)
    return _file(args, changes) if is_file else _folder(args, changes)


def _file(args: argparse.Namespace, changes: Changes) -> int:
    from mdlm.experiment.loading import source_of
    from mdlm.interop.importing import import_weights

    if args.experiment is None:
        raise InputError(
            f"{args.checkpoint}: a file of weights does not describe its network; name the"
            f" experiment that does: {typed(['import', args.checkpoint])} EXPERIMENT --out RUN"
        )
    for option in ("tokenizer", "mask", "as"):
        if getattr(args, option):
            raise InputError(f"--{option}: the experiment says it; leave the option out")
    parameters = import_weights(
        args.checkpoint,
        experiment_of(args, changes),
        Path(args.out),
        source=source_of(args.experiment),
        overrides=changes,
        dtype=args.dtype,
    )
    print(f"{args.out}: {parameters:,} parameters from {args.checkpoint}")
    return 0


def _folder(args: argparse.Namespace, changes: Changes) -> int:
    from mdlm.cli.progress import Progress
    from mdlm.config.component_text import to_text
    from mdlm.interop.checkpoint import fetched
    from mdlm.interop.importing import import_folder

    if args.experiment is not None:
        raise InputError(
            f"{args.experiment}: the folder {args.checkpoint} describes its network itself; leave"
            " the experiment out, and change single values with --name value"
        )
    folder = fetched(args.checkpoint)
    with Progress() as progress:
        experiment, parameters = import_folder(
            folder,
            Path(args.out),
            overrides=changes,
            tokenizer=args.tokenizer,
            mask=args.mask,
            dtype=args.dtype,
            to_diffusion=getattr(args, "as") == "diffusion",
            report=progress.stage,
        )
    print(f"{args.out}: {parameters:,} parameters from {args.checkpoint}, layout {experiment.name}")
    print(f"  network    {to_text(experiment.network)}")
    print(f"  sampler    {to_text(experiment.sampler)}")
    print(f"  objective  {to_text(experiment.objective)}")
    print(f"next: {typed(['sample', args.out])}, or {typed(['eval', args.out])} --data FILE")
    return 0


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "checkpoint",
        help="a folder with config.json and .safetensors files, its name on the Hugging Face hub,"
        " or a file of weights in the layout of the MDLM repository",
    )
    action = sub.add_argument(
        "experiment", nargs="?", help="only for a file of weights: the experiment with its network"
    )
    complete_experiments(action)
    sub.add_argument("--out", required=True, help="run folder to create")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype in which the weights are stored (default: as in the checkpoint)",
    )
    sub.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="tokenizer of a folder that has none: a tokenizer.json, a folder with one, or a name"
        " on the hub",
    )
    sub.add_argument(
        "--as",
        choices=("diffusion",),
        help="make a diffusion model of a causal network (LLaMA, Qwen): a mask token is added and"
        " attention opened; with --network.shift False the logits about a token move to that token",
    )
    sub.add_argument(
        "--mask", metavar="TOKEN", help="the mask token, if config.json and tokenizer name none"
    )


IMPORT_HELP = """\
examples:
  mdlm import GSAI-ML/LLaDA-8B-Base --out runs/llada --dtype bfloat16
  mdlm import ~/models/dream --out runs/dream --data.packing.length 2048
  mdlm import Qwen/Qwen3-0.6B --as diffusion --out runs/qwen
  mdlm import mdlm.safetensors experiments/owt_small.py --out runs/published

A folder describes its network in config.json: LLaDA, Dream, SDAR, MDLM, BD3-LM, Duo, LLaMA, Qwen
and others (the table is in docs/checkpoints.md). Nothing in it is executed, and PyTorch pickles in
it are refused. A file of weights needs the experiment that describes its network.

With --as diffusion a causal network becomes a diffusion model that has yet to be trained as one:
docs/conversion.md.

The new folder holds weights and no training state. `mdlm eval` and `mdlm sample` use the weights in
their stored dtype. To train from them in float32, from step 0, name the folder as --init-from of
`mdlm train`."""


COMMAND = Command(
    name="import",
    help="create a run folder from other people's weights",
    epilog=IMPORT_HELP,
    arguments=arguments,
    run=run,
    takes_settings=True,
    writes_files=True,
)
