"""Output whose reader may go away while the command goes on."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""Errors of writing to a pipe without a reader, and to a terminal that was closed."""


class Outliving:
    """A text stream that is silent once nobody reads it: what is written then is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, call: Any, *values: str) -> None:
        try:
            call(*values)
        except OSError as error:
            if error.errno not in GONE:
                raise
            # What is still buffered goes there too, and so does the output of libraries.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outliving(readers: bool) -> Iterator[None]:
    """Lets standard output and error outlive their readers within the block, if `readers`."""
    streams = sys.stdout, sys.stderr
    if readers:
        sys.stdout, sys.stderr = Outliving(sys.stdout), Outliving(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()  # here, for at exit an error of it would be one of the command
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams
