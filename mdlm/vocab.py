"""The token ids that have a meaning. Free of JAX, for processes that only tokenise."""

from dataclasses import dataclass


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
