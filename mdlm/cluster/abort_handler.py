"""One line and an exit code where the JAX runtime calls `abort`.

The runtime aborts a process that cannot reach the others, or has lost one, and prints a location in
its own source. A handler of the signal prints what that means.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from mdlm.cluster.heartbeat import LOST, Heartbeat


class AbortHandler:
    """Turns an `abort` of the runtime into one line and an exit code.

    The handler of SIGABRT is a C function: one in Python would never run, as `abort` ends the
    process first. An abort with another cause ends the process as usual.

    Args:
        err: where errors are written.
        explain: returns the meaning of the runtime's log. It is used until `heartbeat` is set; the
            exit code is 2 then.
        is_main_gone: whether process 0 no longer answers.
    """

    def __init__(self, err: Any, explain: Callable[[str], str], is_main_gone: Callable[[], bool]):
        self.err, self.explain, self.is_main_gone = err, explain, is_main_gone
        self.heartbeat: Heartbeat | None = None
        self._log: Any = None
        self._stderr = -1
        self._libc = ctypes.CDLL(None)
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_abort)
        self._libc.signal.restype = ctypes.c_void_p
        self._libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)

    def __enter__(self) -> "AbortHandler":
        self._libc.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:  # after an error this process is about to end as well
            self._libc.signal(signal.SIGABRT, None)

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Captures standard error for `_on_abort`, and drops it at the end: warnings of a library
        are not worth a line if all went well."""
        self.hold()
        try:
            yield
        finally:
            self.release(show=False)

    def hold(self) -> None:
        """Redirects standard error into a file. `self.err` still writes to the terminal."""
        if self._log is None:
            sys.stderr.flush()
            self._log = tempfile.TemporaryFile()
            self._stderr = os.dup(2)
            os.dup2(self._log.fileno(), 2)

    def release(self, show: bool = True) -> None:
        """Ends `hold`, and prints what was written meanwhile if `show`."""
        if self._log is not None:
            sys.stderr.flush()
            os.dup2(self._stderr, 2)
            os.close(self._stderr)
            if show:
                print(self._held(), end="", file=self.err, flush=True)
            self._log.close()
            self._log = None

    def _held(self) -> str:
        """Returns what was written to standard error since `hold`."""
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _on_abort(self, _: int) -> None:
        if self.heartbeat is None:
            print(f"mdlm: {self.explain(self._held())}", file=self.err, flush=True)
            os._exit(2)
        lost = self.heartbeat.silent
        if lost is None and self.is_main_gone():
            lost = 0
        if lost is not None:
            self.heartbeat.end(LOST, self.heartbeat.lost_message(lost))
        self.release()
        self._libc.signal(signal.SIGABRT, None)  # not caused by another process: abort as usual
