"""`mdlm runs`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mdlm.cli.command import Changes, Command
from mdlm.errors import InputError
from mdlm.files import finite

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.runs.listing import Listed


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.runs.kept import read
    from mdlm.runs.listing import folders_in, listed

    found = []
    for name in args.folders:
        if not Path(name).is_dir():
            raise InputError(f"folder not found: {name}")
        folders = folders_in(Path(name))
        if not folders:
            raise InputError(f"{name}: no run folder, and none in it")
        for folder in folders:
            try:
                found.append(read(folder, verify=False))
            except InputError as error:
                print(f"mdlm: left out: {error}", file=sys.stderr)
    rows = listed(found)
    print(json.dumps(finite([vars(row) for row in rows]), indent=1) if args.json else table(rows))
    return 0


def table(rows: "Sequence[Listed]") -> str:
    """Returns a line for each run, and below what differs between them. Values of several protocols
    are numbered, and the protocols stand at the end."""
    protocols = list(dict.fromkeys(row.protocol for row in rows if row.protocol))
    number = {protocol: i for i, protocol in enumerate(protocols, 1)}
    lines = [("run", "experiment", "started", "step", "nats/token", "+- seq.", "tokens/s")]
    for row in rows:
        mark = f" [{number[row.protocol]}]" if row.protocol and len(protocols) > 1 else ""
        lines.append(
            (
                row.name,
                row.experiment,
                row.started,
                f"{row.step:,}",
                "" if row.value is None else f"{row.value:.4f}{mark}",
                "" if row.stderr is None else f"{row.stderr:.4f}",
                "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for at, line in enumerate(lines):
        sides = "<<<>>>>"
        cells = [f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)]
        text.append("  ".join(cells).rstrip())
        if at:
            text += [f"    {name} {value}" for name, value in rows[at - 1].differs.items()]
    if len(protocols) > 1:
        text += [f"[{i}] {protocol}" for protocol, i in number.items()]
    elif protocols:
        text.append(protocols[0])
    return "\n".join(text)


RUNS_HELP = """\
examples:
  mdlm runs                         the runs in runs/
  mdlm runs runs/a runs/b           two runs
  mdlm runs sweeps/* --json

A line for each run: its newest step and negative log-likelihood in nats per token (of validation
during training, else of `mdlm eval`), with the standard error over sequences and the protocol, and
the speed of training. Below, the settings in which the runs differ. Files are not compared with
their digests; a folder that cannot be read is left out and named.

`mdlm report` shows the same runs as a page, with differences of their numbers."""


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        default=["runs"],
        help="run folders, or folders of them (default: runs)",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")


COMMAND = Command(
    name="runs",
    help="list runs: step, likelihood, speed, and how their settings differ",
    epilog=RUNS_HELP,
    arguments=arguments,
    run=run,
    computes=False,
)
