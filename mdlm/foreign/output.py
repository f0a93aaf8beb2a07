"""Text streams through which all is printed, in the process of a command and in those it starts.

Text may come from files of others. On a terminal, control characters in it are shown (`\\x1b`), not
obeyed; into files and pipes they go as they are. What cannot be encoded is escaped. A reader may go
away while the command goes on.
"""

import codecs
import errno
import io
import os
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
        self.raw, self.outlives = stream, outlives
        self._shows = visible if stream.isatty() else str

    @classmethod
    def on(cls, file: int | str, *, line_buffering: bool, outlives: bool) -> "Output":
        """The stream of a descriptor, which it then owns, or of a new file."""
        binary = io.FileIO(file, "w")
        stream = io.TextIOWrapper(
            binary, encoding="utf-8", errors=HANDLER, line_buffering=line_buffering
        )
        return cls(stream, outlives=outlives)

    def write(self, text: str) -> int:
        self._attempt(self.raw.write, self._shows(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.raw.flush)

    def _attempt(self, call: Any, *values: str) -> None:
        try:
            call(*values)
        except OSError as error:
            if not self.outlives or error.errno not in GONE:
                raise
            # What is still buffered goes there too, and so does the output of libraries.
            with io.FileIO(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.raw.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> Any:
    """Returns the stream behind, for text that draws on the terminal."""
    return stream.raw if isinstance(stream, Output) else stream
