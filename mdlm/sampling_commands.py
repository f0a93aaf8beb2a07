"""`mdlm sample`, `mdlm samplers` and `mdlm view`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mdlm import hosts
from mdlm.progress import Progress
from mdlm.types import InputError

if TYPE_CHECKING:  # what a `--help` need not wait for
    from mdlm.data.encoding import Tokenizer
    from mdlm.samplers.shaping import Annealed


def sample(args: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from mdlm.run import load
    from mdlm.samplers.catalogue import from_text

    if args.num < 1:
        raise InputError(f"--num {args.num}: at least one text is needed")
    trace = None if args.trace is None else _writable(args.trace)
    run = load(args.run_folder, step=args.step)
    if run.remark and hosts.leads():
        print(f"mdlm: {run.remark}", file=sys.stderr)
    sampler = from_text(args.sampler) if args.sampler else run.experiment.sampler
    names = ("steps", "top_p", "top_k", "top_p_rule")
    settings = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if args.temperature is not None:
        settings["temperature"] = temperature_of(args.temperature)
    if args.ban or args.ban_id:
        banned = (*banned_by(run.tokenizer, args.ban or ()), *(args.ban_id or ()))
        settings["banned"] = (*sampler.banned, *banned)
    if "steps" in settings and not hasattr(sampler, "steps"):
        name = type(sampler).__name__
        raise InputError(f"--steps: {name}(...) has no number of steps, see `mdlm samplers`")
    try:
        sampler = replace(sampler, **settings)
    except ValueError as error:
        raise InputError(str(error)) from error
    with Progress(quiet=not hosts.leads()) as progress:
        if args.infill is not None:
            out = run.infill(
                args.infill,
                num=args.num,
                seed=args.seed,
                trace=trace is not None,
                sampler=sampler,
            )
        else:
            bar = progress.bar("generating", "windows")
            out = run.generate(
                args.prompt,
                num=args.num,
                length=args.length,
                seed=args.seed,
                stride=args.stride,
                stop_at_eos=args.stop_at_eos,
                trace=trace is not None,
                report=lambda done: bar(done.window, done.windows),
                sampler=sampler,
            )
    if not hosts.leads():
        return 0
    if trace is not None and out.trace is not None:
        from mdlm.view.document import dumps

        trace.write_text(dumps(out.trace))
        print(f"{trace}: {out.trace.steps} steps; next: mdlm view {trace}", file=sys.stderr)
    if args.json:
        summary = {
            "nfe": out.nfe,
            "seconds": out.seconds,
            "tokens_per_second": out.tokens_per_second,
        }
        print(json.dumps({**summary, "texts": [vars(t) for t in out.texts]}))
        return 0
    for number, text in enumerate(out.texts, 1):
        if len(out.texts) > 1:
            print(f"=== {number} ===")
        print(text.text)
    print(f"({out})", file=sys.stderr)
    return 0


def samplers(_: argparse.Namespace, __: list[tuple[str, str]]) -> int:
    from mdlm.samplers.catalogue import described

    print(described())
    return 0


def view(args: argparse.Namespace, _: list[tuple[str, str]]) -> int:
    from mdlm.view import terminal
    from mdlm.view.document import loads
    from mdlm.view.frames import row_of

    if not 0 < args.fps <= 50:
        raise InputError(f"--fps {args.fps:g}: between 0 and 50 steps a second can be shown")
    trace = loads(Path(args.trace).read_bytes(), args.trace)
    row = row_of(trace, args.row)
    if args.html is not None:
        from mdlm.view.page import page

        _writable(args.html).write_text(page(trace, row=args.row, fps=args.fps), "utf-8")
        print(f"{args.html}: {trace.steps} steps of {len(trace.rows)} texts; open it in a browser")
    if args.gif is not None:
        from mdlm.view.gif import gif

        _writable(args.gif).write_bytes(gif(trace, row, fps=args.fps))
        print(f"{args.gif}: {trace.steps} steps of text {args.row}")
    if args.html is None and args.gif is None:
        terminal.show(trace, row, sys.stdout, fps=args.fps)
    return 0


def _writable(name: str) -> Path:
    """Where a file can be written; refused before the work is done rather than after it."""
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{name}: no file can be written there")
    return path


def banned_by(tokenizer: "Tokenizer", texts: Sequence[str]) -> tuple[int, ...]:
    """The tokens that the texts are made of, each text encoded by itself, in rising order.

    What a text is made of elsewhere may be other tokens: many tokenizers have one for a word and
    another for the word after a space. InputError where a text has no tokens.
    """
    found: set[int] = set()
    for text, ids in zip(texts, tokenizer.encode(list(texts)), strict=True):
        if not len(ids):
            raise InputError(f"--ban {text!r}: a text without tokens bans nothing")
        found.update(int(i) for i in ids)
    return tuple(sorted(found))


def temperature_of(text: str) -> "float | Annealed":
    """`0.7`, or `1.0:0.3` for a temperature annealed from 1.0 to 0.3. InputError if neither."""
    from mdlm.samplers.shaping import Annealed

    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"--temperature {text}: expected a number, or FIRST:LAST")
    try:
        return numbers[0] if len(numbers) == 1 else Annealed(first=numbers[0], last=numbers[1])
    except ValueError as error:
        raise InputError(f"--temperature {text}: {error}") from error
