"""The options of `mdlm sample` that set the sampler."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mdlm.cli.arguments import real, whole
from mdlm.errors import InputError

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.data.tokens.tokenizer import Tokenizer
    from mdlm.run import Run
    from mdlm.samplers import Annealed, Sampler


def add_sampler(sub: argparse.ArgumentParser) -> None:
    """Adds the sampler, and its settings that have an option of their own."""
    sub.add_argument(
        "--sampler",
        metavar="TEXT",
        help='sampler to use, such as "Ancestral(steps=32)" (default: the run\'s)',
    )
    sub.add_argument(
        "--verifier",
        metavar="RUN",
        help="an autoregressive run with the same tokenizer, which verifies what this one drafts "
        "(default sampler: Verified())",
    )
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


def sampler_of(args: argparse.Namespace, run: "Run") -> "Sampler":
    """The sampler that the options ask for: by default the run's, with the settings given.

    Raises InputError if the sampler lacks one of the settings or refuses its value.
    """
    from mdlm.config.component_text import from_text
    from mdlm.config.ranges import check_ranges
    from mdlm.samplers import Sampler, Verified

    sampler = Verified() if args.verifier else run.experiment.sampler
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
