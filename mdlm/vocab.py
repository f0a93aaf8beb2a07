"""The token ids that have a meaning, and the error that people can mend: free of JAX.

Processes that only tokenise import this and not `mdlm.types`, which has both names too.
"""

from dataclasses import dataclass


class InputError(ValueError):
    """What the person at the keyboard can mend: the command line prints it as one line."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Vocab:
    """The token ids that have a meaning of their own. Ids run from 0 to `size - 1`.

    `size` counts every id the data or the process may produce, the mask included; a network may
    have more columns (padding of the table), which no distribution ever gives mass to.
    """

    size: int
    mask_id: int
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None

    def __post_init__(self):
        for name in ("mask_id", "bos_id", "eos_id", "pad_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.size:
                raise ValueError(f"{name}={value} is not an id of a vocabulary of {self.size}")
