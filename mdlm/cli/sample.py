"""`mdlm sample`."""

import argparse
from pathlib import Path
from typing import Any

from mdlm.cli.arguments import (
    MANY_HELP,
    add_process_group,
    add_run,
    also_opened,
    opened,
    seed,
    whole,
    writable,
)
from mdlm.cli.command import Changes, Command
from mdlm.cli.sample_output import Making
from mdlm.cli.sampler_options import add_sampler, sampler_of
from mdlm.errors import InputError

MOST = 10_000_000
"""The largest number of texts, and of their tokens."""
APART = (
    ("stream", "json", "it prints the whole result at the end"),
    ("stream", "trace", "a trace is replayed by `mdlm view`"),
    ("stream", "infill", "its blanks are not filled in order"),
    ("stream", "out", "texts are read in the file"),
    ("out", "json", "the lines of the file are JSON"),
    ("out", "trace", "a trace has all texts at once"),
)
"""Options that do not go together, and why the second does not."""


def run(args: argparse.Namespace, _: Changes) -> int:
    check_options(args)
    messages = messages_of(args)
    trace, out = (None if name is None else writable(name) for name in (args.trace, args.out))
    run = opened(args)
    verifier = also_opened(args, args.verifier) if args.verifier else None
    making = Making(args, run, sampler_of(args, run), messages, verifier)
    if args.stream:
        return making.stream()
    return making.print(trace) if out is None else making.write(out)


def check_options(args: argparse.Namespace) -> None:
    """Raises InputError if an option is out of range or does not go with another."""
    from mdlm.data.text.utf8 import check_utf8

    names = ("prompt", "infill", "chat", "system")
    given = [(f"--{name}", getattr(args, name)) for name in names]
    for option, text in (*given, *(("--ban", text) for text in args.ban or ())):
        check_utf8(text or "", option)
    for one, other, why in APART:
        if all(getattr(args, name) not in (None, False) for name in (one, other)):
            raise InputError(f"--{one}: not allowed with --{other}: {why}; leave one out")
    if args.stream and args.num > 1:
        raise InputError(
            "--stream: prints one text; leave --num out, or write many with --out FILE"
        )
    if args.batch is not None and args.out is None:
        raise InputError("--batch: allowed with --out FILE, to which the texts go batch by batch")
    unfit = {"--length": args.length, "--stride": args.stride, "--stop-at-eos": args.stop_at_eos}
    for option, value in unfit.items():
        if args.infill is not None and value is not None:
            raise InputError(f"{option}: not allowed with --infill, whose text has its own length")
    for name in ("num", "length", "batch"):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= MOST:
            raise InputError(f"--{name} {value}: must be from 1 to {MOST:,}")


def messages_of(args: argparse.Namespace) -> list[dict[str, str]] | None:
    """Returns the conversation that the options give, None if they give none.

    Raises InputError if the file has none, or an option does not go with another.
    """
    from mdlm.data.tokens.conversations import checked
    from mdlm.runs.reading import json_of

    is_chat = args.chat is not None or args.chat_file is not None
    for option, value in {"--stride": args.stride, "--stop-at-eos": args.stop_at_eos}.items():
        if is_chat and value is not None:
            raise InputError(f"{option}: not allowed with --chat, whose answers end by themselves")
    if not is_chat:
        if args.system is not None:
            raise InputError("--system: allowed with --chat or --chat-file")
        return None
    messages: Any = [{"role": "user", "content": args.chat}]
    if args.chat_file is not None:
        messages = json_of(Path(args.chat_file), list)
    if args.system is not None:
        messages = [{"role": "system", "content": args.system}, *messages]
    return checked(messages, args.chat_file or "--chat")


SAMPLE_HELP = """\
examples:
  mdlm sample runs/quickstart --length 512
  mdlm sample runs/quickstart --prompt "The import statement" --num 3 --top-p 0.9
  mdlm sample runs/quickstart --infill "A list is [MASK:8] that can be changed."
  mdlm sample runs/quickstart --temperature 1.0:0.3 --ban "!"
  mdlm sample runs/quickstart --sampler "Ancestral(steps=32, top_p=0.9)"
  mdlm sample runs/quickstart --sampler "Parallel(block_size=32, cache=Dual(refresh=8))"
  mdlm sample runs/quickstart --verifier runs/quickstart-ar
  mdlm sample runs/quickstart --num 2 --trace sample.trace
  mdlm sample runs/quickstart --length 512 --stream
  mdlm sample runs/quickstart --num 1000 --out texts.jsonl
  mdlm sample runs/llada --chat "Why is the sky blue?" --system "Answer in one sentence."

In --infill, [MASK] is a blank of one token and [MASK:8] a blank of eight; the text between blanks
is kept to the letter. A text longer than a row is written in windows, each conditioned on the end
of the last. Where a document ends, a line says so; control characters are shown as \\x1b. --json
has each text as it is, and in pieces, one for each document. `mdlm samplers` lists the samplers and
their settings. `mdlm view` replays a file of --trace. --stream prints a text while it is written:
sooner with samplers that go from left to right or in blocks. --out writes the texts as they are
made, and the same command goes on after a kill. Text i depends on --seed and on i only.
--top-p, --top-k and --temperature change the distribution of the samples."""


def arguments(sub: argparse.ArgumentParser) -> None:
    add_run(sub)
    add_process_group(sub)
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--prompt", default="", help="text to continue")
    what.add_argument("--infill", metavar="TEXT", help="text with blanks [MASK] to fill")
    what.add_argument(
        "--chat", metavar="TEXT", help="a message to answer, for checkpoints with a chat template"
    )
    what.add_argument(
        "--chat-file",
        metavar="FILE",
        help='a conversation to answer: a JSON list of {"role": ..., "content": ...}',
    )
    sub.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    sub.add_argument(
        "--length",
        type=whole,
        help="tokens per text (default: the run's row length; of an answer to --chat: 128)",
    )
    sub.add_argument("--num", type=whole, default=1, help="number of texts (default: 1)")
    sub.add_argument("--stream", action="store_true", help="print the text while it is written")
    sub.add_argument(
        "--out",
        metavar="FILE",
        help="write the texts to FILE, a line of JSON for each, and go on where it ends; its "
        "settings lie beside it, in FILE.settings.json",
    )
    sub.add_argument(
        "--batch",
        metavar="N",
        type=whole,
        help="texts generated at a time, for --out (default: 32 for each device)",
    )
    sub.add_argument("--seed", type=seed, default=0, help="seed of the random draws (default: 0)")
    add_sampler(sub)
    sub.add_argument(
        "--stride",
        type=whole,
        help="new tokens per window, for texts longer than a row (default: half a row)",
    )
    sub.add_argument(
        "--stop-at-eos",
        action=argparse.BooleanOptionalAction,
        help="end each text at its first end-of-sequence token (default: if the run's rows are "
        "single documents)",
    )
    sub.add_argument(
        "--trace", metavar="FILE", help="write every sampling step to FILE, for `mdlm view`"
    )


COMMAND = Command(
    name="sample",
    help="generate text with a trained run: unprompted, from a prompt, or in blanks",
    epilog=SAMPLE_HELP + "\n" + MANY_HELP.format(command="sample"),
    arguments=arguments,
    run=run,
    many_processes=True,
)
