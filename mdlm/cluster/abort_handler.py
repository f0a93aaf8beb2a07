"""One line and an exit code where the runtime that JAX uses would `abort`.

It ends a process that cannot reach the others, or has lost one, and prints where in its source that
happened. A handler of the signal says what it means.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from mdlm.cluster.heartbeat import LOST, Watch


class Aborts:
    """Makes one line and an exit code of the runtime's `abort`.

    A C handler of SIGABRT, for one of Python's is never run: `abort` ends the process first. What
    is none of the runtime's doing goes on to end the process as ever.

    Args:
        err: where errors are written.
        meaning: what the runtime's words mean, before there is a `watch`: exit code 2 then.
        is_gone: whether process 0 is.
    """

    def __init__(self, err: Any, meaning: Callable[[str], str], is_gone: Callable[[], bool]):
        self.err, self.meaning, self.is_gone = err, meaning, is_gone
        self.watch: Watch | None = None
        self._log: Any = None
        self._past = -1
        self._libc = ctypes.CDLL(None)
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        self._libc.signal.restype = ctypes.c_void_p
        self._libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)

    def __enter__(self) -> "Aborts":
        self._libc.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:  # else this process is about to end as well
            self._libc.signal(signal.SIGABRT, None)

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Keeps what is written on standard error, to be read by `_aborted`. What a library had to
        warn of on the way is not worth a line where it went well."""
        self.hold()
        try:
            yield
        finally:
            self.release(show=False)

    def hold(self) -> None:
        """From now on standard error goes into a file. What `self.err` is told is seen."""
        if self._log is None:
            sys.stderr.flush()
            self._log = tempfile.TemporaryFile()
            self._past = os.dup(2)
            os.dup2(self._log.fileno(), 2)

    def release(self, show: bool = True) -> None:
        """Ends `hold`, and shows what was written meanwhile."""
        if self._log is not None:
            sys.stderr.flush()
            os.dup2(self._past, 2)
            os.close(self._past)
            if show:
                print(self._held(), end="", file=self.err, flush=True)
            self._log.close()
            self._log = None

    def _held(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _aborted(self, _: int) -> None:
        if self.watch is None:
            print(f"mdlm: {self.meaning(self._held())}", file=self.err, flush=True)
            os._exit(2)
        lost = self.watch.silent
        if lost is None and self.is_gone():
            lost = 0
        if lost is not None:
            self.watch.end(LOST, self.watch.loss(lost))
        self.release()
        self._libc.signal(signal.SIGABRT, None)  # not of the others' making: let it go on
