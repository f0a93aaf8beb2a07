"""Compilation, which takes long and says nothing: whoever shows progress is told of it.

`announced("the training step")` surrounds what compiles. `watched(by)` surrounds a command: within
it, `by("the training step")` gives a context that is entered for as long as the compilation takes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from mdlm.cluster import process_group

Watcher = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of what is compiled; its result is entered meanwhile."""

_watcher: ContextVar[Watcher] = ContextVar("watcher", default=nullcontext)


@contextmanager
def watched(by: Watcher) -> Iterator[None]:
    """Tells `by` of each compilation within the block."""
    token = _watcher.set(by)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Tells the watcher that `what` is being compiled until the end of the block."""
    with _watcher.get()(what):
        yield


def compile_together(program: Any, *arguments: Any, what: str) -> None:
    """Compiles a jitted program for these arguments; returns when all processes have done so.

    JAX keeps the result for the call that follows. A process that ran the program earlier would
    wait in it for the others, on CPUs for at most half a minute. `what` is the program's name in
    the announcement.
    """
    with announced(what):
        program.lower(*arguments).compile()
        process_group.barrier()
