"""`mdlm view`."""

import argparse
import sys
from pathlib import Path

from mdlm.cli.arguments import real, whole, writable
from mdlm.cli.command import Changes, Command
from mdlm.errors import InputError
from mdlm.files import write
from mdlm.foreign.output import raw


def run(args: argparse.Namespace, _: Changes) -> int:
    from mdlm.view import terminal
    from mdlm.view.document import loads
    from mdlm.view.frames import row_of

    if not 0 < args.fps <= 50:
        raise InputError(f"--fps {args.fps:g}: must be above 0 and at most 50 steps per second")
    path = Path(args.trace)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(
            f"{path}: {what}; give a file that `mdlm sample RUN --trace FILE` has written"
        )
    for name in (args.html, args.gif):
        if name is not None and writable(name).exists() and writable(name).samefile(path):
            raise InputError(f"{name}: is the trace itself; name another file to write")
    trace = loads(path.read_bytes(), args.trace)
    row = row_of(trace, args.row)
    if args.html is not None:
        from mdlm.view.page import page

        write(writable(args.html), page(trace, row=args.row, fps=args.fps))
        print(f"{args.html}: {trace.steps} steps of {len(trace.rows)} texts; open it in a browser")
    if args.gif is not None:
        from mdlm.view.gif import gif

        write(writable(args.gif), gif(trace, row, fps=args.fps))
        print(f"{args.gif}: {trace.steps} steps of text {args.row}")
    if args.html is None and args.gif is None:
        terminal.show(trace, row, raw(sys.stdout), fps=args.fps)
    return 0


VIEW_HELP = """\
examples:
  mdlm sample runs/quickstart --num 2 --trace sample.trace
  mdlm view sample.trace                        replay the first text in the terminal
  mdlm view sample.trace --row 2 --fps 20       the second text, faster
  mdlm view sample.trace --html sample.html     a page to scrub through, for any browser
  mdlm view sample.trace --gif sample.gif       an animation

The colour of a token shows the network's probability of it when it was written: orange is
improbable, blue is certain. A red x is a token that was remasked. If the output is no terminal, or
NO_COLOR is set, a table of the steps is printed instead. The HTML page needs no network connection
and no other file."""


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("trace", metavar="FILE", help="a trace written by `mdlm sample --trace FILE`")
    sub.add_argument(
        "--row", type=whole, default=1, help="number of the text to show, from 1 (default: 1)"
    )
    sub.add_argument("--html", metavar="OUT", help="write an HTML page to OUT")
    sub.add_argument("--gif", metavar="OUT", help="write an animated GIF to OUT")
    sub.add_argument("--fps", type=real, default=8.0, help="steps per second (default: 8)")


COMMAND = Command(
    name="view",
    help="replay how a text was denoised, from `mdlm sample --trace`",
    epilog=VIEW_HELP,
    arguments=arguments,
    run=run,
)
