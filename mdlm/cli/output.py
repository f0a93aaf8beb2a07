"""Standard output and error of a command: open, in UTF-8, and safe for a terminal."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mdlm.foreign.output import HANDLER, Output


def opened() -> None:
    """Makes standard streams usable: open, and in UTF-8 whatever the locale.

    A closed one would be given, by its number, to the next file that the command opens.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=HANDLER)


@contextmanager
def printing(outlives: bool) -> Iterator[None]:
    """Lets standard output and error be `Output` within the block."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Output(stream, outlives=outlives) for stream in streams)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()  # here, for at exit an error of it would be one of the command
            sys.stderr.flush()
        finally:
            sys.stdout, sys.stderr = streams
