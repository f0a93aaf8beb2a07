"""Long calls into compiled libraries, in which signals are still answered."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TICK = 0.1
"""Seconds between two looks at what signals have asked for."""


def apart(call: Callable[[], T]) -> T:
    """Returns `call()`, which runs in a thread of its own, and raises what it raises.

    Python runs the handlers of signals in the main thread, between two of its own instructions. If
    one raises, the wait ends; the library, which nothing can stop, ends with the process.
    """
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(TICK)
    if errors:
        raise errors[0]
    return found[0]
