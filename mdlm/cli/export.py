"""`mdlm export`."""

import argparse
from pathlib import Path
from typing import Any

from mdlm.cli.arguments import add_trust, typed
from mdlm.cli.command import Changes, Command


def run(args: argparse.Namespace, changes: Changes) -> int:
    import mdlm
    from mdlm.cli.progress import Progress
    from mdlm.interop.exporting import export

    opened = mdlm.load(args.run_folder, step=args.step, trust=args.trust_experiment)
    if args.adapter:
        return _adapter(opened, args)
    with Progress() as progress:
        layout, files = export(
            opened,
            Path(args.to),
            layout=args.layout,
            dtype=args.dtype,
            report=progress.stage,
        )
    print(f"{args.to}: step {opened.step} of {args.run_folder}, layout {layout.name}")
    print("  " + "  ".join(files))
    if layout.in_transformers:
        print(f"to load it: transformers.AutoModelForCausalLM.from_pretrained({args.to!r})")
    print(f"back: {typed(['import', args.to, '--out', 'RUN'])}")
    return 0


def _adapter(opened: Any, args: argparse.Namespace) -> int:
    from mdlm.interop.adapter import export_adapter

    layout, files = export_adapter(opened, Path(args.to), layout=args.layout, dtype=args.dtype)
    print(
        f"{args.to}: adapter of step {opened.step} of {args.run_folder}, layout {layout.name}\n"
        f"  {'  '.join(files)}\n"
        "to load it: peft.PeftModel.from_pretrained(BASE, "
        f"{args.to!r}), where BASE is the network that the run began from"
    )
    return 0


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "run_folder", metavar="RUN", help="a run folder, made by `mdlm train` or `mdlm import`"
    )
    sub.add_argument("--to", required=True, metavar="DIR", help="folder to create")
    sub.add_argument(
        "--layout",
        metavar="NAME",
        help="whose layout: mdlm, bd3lm, llada, qwen3, llama, a2d-qwen3, ... (default: the one"
        " that it was imported from, or the first with such a network)",
    )
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the tensors (default: as they are)",
    )
    sub.add_argument(
        "--adapter",
        action="store_true",
        help="only what LoRA trained, as an adapter of PEFT for the network the run began from",
    )
    sub.add_argument(
        "--step", type=int, help="use the checkpoint of this step (default: the newest)"
    )
    add_trust(sub)


EXPORT_HELP = """\
examples:
  mdlm export runs/quickstart --to exported
  mdlm export runs/qwen --to qwen --layout a2d-qwen3 --dtype bfloat16
  mdlm export runs/qwen-lora --to adapter --adapter

The folder has config.json, safetensors (with an index if there are several), the tokenizer, the
chat template, defaults of generation, and a model card (README.md) with data, protocol and results
of `mdlm eval`. Fill in the licence. A network that no public code has is refused, with the reason
for each layout: docs/checkpoints.md has the table."""


COMMAND = Command(
    name="export",
    help="write a run as a folder that other programs load",
    epilog=EXPORT_HELP,
    arguments=arguments,
    run=run,
    writes_files=True,
)
