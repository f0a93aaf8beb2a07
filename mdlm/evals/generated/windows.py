"""The contexts in which a network of a fixed length reads longer texts.

Windows of `context` tokens begin each `stride` tokens, up to the one that reaches the end. Each
scores the tokens that no window before it has scored: after the first window these have at least
`context - stride` tokens before them. With `stride = context` windows do not overlap, and the first
token of each is not scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mdlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Context:
    """The rule: `context` tokens are read at a time, `stride` of them new.

    Raises InputError if a number is out of range.
    """

    context: int
    stride: int

    def __post_init__(self):
        if self.context < 2:
            raise InputError(f"context={self.context}: must be at least 2")
        if not 1 <= self.stride <= self.context:
            raise InputError(f"stride={self.stride}: must be in 1..{self.context}, the context")

    def windows(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Yields (begin, first, end) of the windows of a text of `length` tokens: those from
        `begin` to `end` are read, those from `first` on are scored."""
        done = 0
        for begin in range(0, length, self.stride):
            end = min(begin + self.context, length)
            yield begin, max(done, begin + 1), end
            if end == length:
                return
            done = end
