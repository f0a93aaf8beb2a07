"""`mdlm sample`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlm.cli.arguments import (
    MANY_HELP,
    add_process_group,
    add_run,
    real,
    seed,
    typed,
    whole,
    writable,
)
from mdlm.cli.command import Changes, Command
from mdlm.cli.progress import Progress
from mdlm.cluster import process_group
from mdlm.errors import InputError
from mdlm.files import finite, write

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.data.tokens.tokenizer import Tokenizer
    from mdlm.generation.generator import Generation
    from mdlm.run import Run
    from mdlm.samplers import Annealed, Sampler


MOST = 10_000_000
"""The largest number of texts, and of their tokens."""


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.data.text.utf8 import check_utf8
    from mdlm.run import load

    names = ("prompt", "infill", "chat", "system")
    given = [(f"--{name}", getattr(args, name)) for name in names]
    for option, text in (*given, *(("--ban", text) for text in args.ban or ())):
        check_utf8(text or "", option)
    unfit = {"--length": args.length, "--stride": args.stride, "--stop-at-eos": args.stop_at_eos}
    for option, value in unfit.items():
        if args.infill is not None and value is not None:
            raise InputError(f"{option}: not allowed with --infill, whose text has its own length")
    messages = messages_of(args)
    for option, value in (("--num", args.num), ("--length", args.length)):
        if value is not None and not 1 <= value <= MOST:
            raise InputError(f"{option} {value}: must be from 1 to {MOST:,}")
    trace = None if args.trace is None else writable(args.trace)
    run = load(
        args.run_folder,
        step=args.step,
        trust=args.trust_experiment,
        verify=not args.no_verify,
    )
    if run.remark and process_group.is_main():
        print(f"mdlm: {run.remark}", file=sys.stderr)
    out = generated(args, run, sampler_of(args, run), messages)
    if not process_group.is_main():
        return 0
    if trace is not None and out.trace is not None:
        from mdlm.view.document import dumps

        write(trace, dumps(out.trace))
        again = typed(["view", str(trace)])
        print(f"{trace}: {out.trace.steps} steps; next: {again}", file=sys.stderr)
    if args.json:
        names = ("nfe", "seconds", "tokens_per_second")
        summary = {name: getattr(out, name) for name in names}
        print(json.dumps(finite({**summary, "texts": [vars(t) for t in out.texts]})))
        return 0
    for number, text in enumerate(out.texts, 1):
        if len(out.texts) > 1:
            print(f"=== {number} ===")
        print(text.shown)
    print(f"({out})", file=sys.stderr)
    return 0


def sampler_of(args: argparse.Namespace, run: "Run") -> "Sampler":
    """The sampler that the options ask for: by default the run's, with the settings given.

    Raises InputError if the sampler lacks one of the settings or refuses its value.
    """
    from mdlm.config.component_text import from_text
    from mdlm.config.ranges import check_ranges
    from mdlm.samplers import Sampler

    sampler = run.experiment.sampler
    if args.sampler:
        sampler = from_text(args.sampler, Sampler, f"--sampler {args.sampler}")
    names = ("steps", "top_p", "top_k", "top_p_rule")
    settings = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if args.temperature is not None:
        settings["temperature"] = temperature_of(args.temperature)
    if args.ban or args.ban_id:
        banned = (*banned_by(run.tokenizer, args.ban or ()), *(args.ban_id or ()))
        settings["banned"] = (*sampler.banned, *banned)
    if "steps" in settings and not hasattr(sampler, "steps"):
        name = type(sampler).__name__
        raise InputError(
            f"--steps: {name}(...) has no number of steps; `mdlm samplers` lists those that have"
        )
    try:
        sampler = replace(sampler, **settings)
        check_ranges(sampler)
        return sampler
    except ValueError as error:
        raise InputError(str(error)) from error


def messages_of(args: argparse.Namespace) -> list[dict[str, str]] | None:
    """Returns the conversation that the options give, None if they give none.

    Raises InputError if the file has none, or an option does not go with another.
    """
    from mdlm.generation.chat import checked
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


def generated(
    args: argparse.Namespace,
    run: "Run",
    sampler: "Sampler",
    messages: list[dict[str, str]] | None = None,
) -> "Generation":
    """Generates the texts that the options ask for, with a progress bar in process 0."""
    with Progress(quiet=not process_group.is_main()) as progress:
        common = {
            "num": args.num,
            "seed": args.seed,
            "trace": args.trace is not None,
            "sampler": sampler,
        }
        if args.infill is not None:
            return run.infill(args.infill, **common)
        if messages is not None:
            length = {} if args.length is None else {"length": args.length}
            return run.chat(messages, **length, **common)
        bar = progress.bar("generating", "windows")
        return run.generate(
            args.prompt,
            length=args.length,
            stride=args.stride,
            stop_at_eos=args.stop_at_eos,
            report=lambda done: bar(done.window, done.windows),
            **common,
        )


def banned_by(tokenizer: "Tokenizer", texts: Sequence[str]) -> tuple[int, ...]:
    """Returns the ids of the tokens of the texts, each text encoded by itself, in rising order.

    Within a longer text the same words may be other tokens: many tokenizers have one token for a
    word and another for the word after a space. Raises InputError if a text has no tokens.
    """
    found: set[int] = set()
    for text, ids in zip(texts, tokenizer.encode(list(texts)), strict=True):
        if not len(ids):
            raise InputError(
                f"--ban {text!r}: has no tokens, so it bans nothing; give a text with tokens"
            )
        found.update(int(i) for i in ids)
    return tuple(sorted(found))


def temperature_of(text: str) -> "float | Annealed":
    """Reads `0.7`, or `1.0:0.3` for a temperature annealed from 1.0 to 0.3.

    Raises InputError if the text is neither.
    """
    from mdlm.config.component_text import from_text
    from mdlm.samplers import Annealed

    try:
        numbers = [from_text(part, float) for part in text.split(":")]
    except InputError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"--temperature {text}: expected a number, or FIRST:LAST")
    try:
        return numbers[0] if len(numbers) == 1 else Annealed(first=numbers[0], last=numbers[1])
    except ValueError as error:
        raise InputError(f"--temperature {text}: {error}") from error


SAMPLE_HELP = """\
examples:
  mdlm sample runs/quickstart --length 512
  mdlm sample runs/quickstart --prompt "The import statement" --num 3 --top-p 0.9
  mdlm sample runs/quickstart --infill "A list is [MASK:8] that can be changed."
  mdlm sample runs/quickstart --temperature 1.0:0.3 --ban "!"
  mdlm sample runs/quickstart --sampler "Ancestral(steps=32, top_p=0.9)"
  mdlm sample runs/quickstart --num 2 --trace sample.trace
  mdlm sample runs/llada --chat "Why is the sky blue?" --system "Answer in one sentence."

In --infill, [MASK] is a blank of one token and [MASK:8] a blank of eight; the text between blanks
is kept to the letter. A text longer than a row is written in windows, each conditioned on the end
of the last. Where a document ends, a line says so; control characters are shown as \\x1b. --json
has each text as it is, and in pieces, one for each document. `mdlm samplers` lists the samplers and
their settings. `mdlm view` replays a file of --trace.
--top-p, --top-k and --temperature change the distribution of the samples."""


def _add_sampler_settings(sub: argparse.ArgumentParser) -> None:
    """Adds the settings of the sampler that have an option of their own."""
    sub.add_argument("--steps", type=whole, help="sampling steps per window")
    sub.add_argument(
        "--temperature",
        metavar="T",
        help="temperature, a number, or FIRST:LAST to change it as a row fills",
    )
    sub.add_argument(
        "--top-p",
        metavar="P",
        type=real,
        help="sample from the likeliest tokens with total probability P",
    )
    sub.add_argument(
        "--top-p-rule",
        choices=("reach", "below"),
        help="keep the token that crosses top-p (reach, the default) or drop it (below)",
    )
    sub.add_argument("--top-k", metavar="K", type=whole, help="sample from the K likeliest tokens")
    sub.add_argument(
        "--ban", metavar="TEXT", action="append", help="never write the tokens of TEXT"
    )
    sub.add_argument(
        "--ban-id", metavar="ID", type=whole, action="append", help="never write the token ID"
    )


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
    sub.add_argument("--seed", type=seed, default=0, help="seed of the random draws (default: 0)")
    sub.add_argument(
        "--sampler",
        metavar="TEXT",
        help='sampler to use, such as "Ancestral(steps=32)" (default: the run\'s)',
    )
    _add_sampler_settings(sub)
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
