"""Checks of the tokens that a sampler is given."""

import numpy as np
from jaxtyping import Bool, Int

from mdlm.errors import InputError
from mdlm.types import Vocab


def check_prompt(
    tokens: Int[np.ndarray, "b l"],
    is_fixed: Bool[np.ndarray, "b l"],
    vocab: Vocab,
    first_row: int = 0,
) -> None:
    """Raises InputError if a fixed token is the mask or outside the vocabulary.

    The message counts prompts from `first_row`.
    """
    is_outside = (tokens < 0) | (tokens >= vocab.size)
    for is_bad, reason in (
        (is_outside, f"outside the vocabulary of {vocab.size} tokens"),
        (tokens == vocab.mask_id, "the mask token, which stands for an unknown token"),
    ):
        found = np.argwhere(is_bad & is_fixed)
        if len(found):
            row, position = found[0]
            raise InputError(
                f"token {tokens[row, position]} at position {position} of prompt {row + first_row} "
                f"is {reason}"
            )
