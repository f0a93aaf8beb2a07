"""Standard output and error of a command: the one place through which it prints.

Text may come from files of others. On a terminal, control characters in it are shown (`\\x1b`), not
obeyed; into files and pipes they go as they are. What cannot be encoded is escaped. A reader may go
away while the command goes on.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from mdlm.foreign.shown import visible

GONE = (errno.EPIPE, errno.EIO)
"""Errors of writing to a pipe without a reader, and to a terminal that was closed."""
HANDLER = "mdlm.names"
"""Encodes the bytes of file names as they are, and escapes other halves of surrogate pairs."""


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in part):
        return part.encode("utf-8", "surrogateescape"), error.end
    return part.encode("ascii", "backslashreplace"), error.end


codecs.register_error(HANDLER, _encoded)


class Output:
    """A text stream that shows control characters on a terminal.

    If it `outlives` its reader, it is silent once nobody reads it: what is written then is dropped.
    """

    def __init__(self, stream: TextIO, *, outlives: bool):
        self.raw, self._outlives = stream, outlives
        self._shows = visible if stream.isatty() else str

    def write(self, text: str) -> int:
        self._attempt(self.raw.write, self._shows(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.raw.flush)

    def _attempt(self, call: Any, *values: str) -> None:
        try:
            call(*values)
        except OSError as error:
            if not self._outlives or error.errno not in GONE:
                raise
            # What is still buffered goes there too, and so does the output of libraries.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.raw.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> Any:
    """Returns the stream behind, for text that draws on the terminal."""
    return stream.raw if isinstance(stream, Output) else stream


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
