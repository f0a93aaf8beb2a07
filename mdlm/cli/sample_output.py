"""The texts of `mdlm sample`: printed at the end, printed while written, or added to a file."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlm.cli.arguments import typed
from mdlm.cli.progress import Progress
from mdlm.cluster import process_group
from mdlm.files import finite, write

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.generation.texts import Generation
    from mdlm.run import Run
    from mdlm.samplers import Sampler

BATCH = 32
"""The texts of a batch for each device, where they go to a file."""


@dataclass(frozen=True)
class Making:
    """The texts that the options ask for, and the ways in which they are given out.

    All processes of a run make them; process 0 prints and writes.
    """

    args: argparse.Namespace
    run: "Run"
    sampler: "Sampler"
    messages: list[dict[str, str]] | None
    verifier: "Run | None" = None

    def print(self, trace: Path | None) -> int:
        """Prints all texts at the end, and writes their trace."""
        args, is_main = self.args, process_group.is_main()
        with Progress(quiet=not is_main) as progress:
            bar = progress.bar("generating", "windows")
            out = self.made(args.num, report=lambda done: bar(done.window, done.windows))
        if not is_main:
            return 0
        if trace is not None and out.trace is not None:
            from mdlm.view.document import dumps

            write(trace, dumps(out.trace))
            again = typed(["view", str(trace)])
            print(f"{trace}: {out.trace.steps} steps; next: {again}", file=sys.stderr)
        if args.json:
            names = ("nfe", "seconds", "tokens_per_second", "note")
            summary = {name: getattr(out, name) for name in names}
            print(json.dumps(finite({**summary, "texts": [vars(t) for t in out.texts]})))
            return 0
        for number, text in enumerate(out.texts, 1):
            if len(out.texts) > 1:
                print(f"=== {number} ===")
            print(text.shown)
        print(f"({out})", file=sys.stderr)
        return 0

    def stream(self) -> int:
        """Prints one text while it is written."""
        args, is_main = self.args, process_group.is_main()
        text = self.run.stream(
            args.prompt if self.messages is None else self.messages,
            length=args.length,
            seed=args.seed,
            stride=args.stride,
            stop_at_eos=args.stop_at_eos,
            sampler=self.sampler,
            verifier=self.verifier,
        )
        with Progress(quiet=not is_main):
            for piece in text.shown():
                if is_main:
                    print(piece, end="", flush=True)
        if is_main:
            print()
            print(f"({text.generation})", file=sys.stderr)
        return 0

    def write(self, path: Path) -> int:
        """Writes the texts to a file batch by batch, from the first that it lacks."""
        from mdlm.cli.texts_file import TextsFile, fill

        args, file = self.args, None

        def opened() -> int:
            nonlocal file
            file = TextsFile(path, self.settings())
            return file.count

        there = process_group.broadcast(opened)
        size = (
            args.batch or BATCH * self.run.generator(self.sampler, verifier=self.verifier).devices
        )
        with file or nullcontext(), Progress(quiet=file is None) as progress:
            bar = progress.bar("generating", "texts")
            made = lambda num, first: self.made(num, first)
            tokens, seconds = fill(file, there, args.num, size, made, bar)
        if file is not None:
            speed = f", {tokens / seconds:.0f} tokens/s" if seconds else ""
            new = f"{file.count - there} of them new{speed}"
            print(f"{path}: {file.count} texts, {new}", file=sys.stderr)
        return 0

    def made(
        self, num: int, first: int = 0, report: Callable[[Any], None] | None = None
    ) -> "Generation":
        """Makes `num` of the texts, from number `first`."""
        args = self.args
        common: dict[str, Any] = {"num": num, "first": first, "seed": args.seed}
        common |= {"sampler": self.sampler, "trace": args.trace is not None}
        common |= {"verifier": self.verifier}
        if args.infill is not None:
            return self.run.infill(args.infill, **common)
        if self.messages is not None:
            length = {} if args.length is None else {"length": args.length}
            return self.run.chat(self.messages, **length, **common)
        return self.run.generate(
            args.prompt,
            length=args.length,
            stride=args.stride,
            stop_at_eos=args.stop_at_eos,
            report=report,
            **common,
        )

    def settings(self) -> dict[str, Any]:
        """What the texts depend on, but for their number."""
        from mdlm.config.component_text import to_text

        names = ("seed", "length", "stride", "stop_at_eos", "prompt", "infill")
        return {
            "run": str(self.run.folder.path.resolve()),
            "step": self.run.step,
            "fingerprint": self.run.folder.config().get("fingerprint"),
            "sampler": to_text(self.sampler, lenient=True),
            **{name: getattr(self.args, name) for name in names},
            "messages": self.messages,
            "verifier": self.verifier and str(self.verifier.folder.path.resolve()),
        }
