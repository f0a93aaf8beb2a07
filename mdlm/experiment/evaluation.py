"""Settings of evaluation."""

from dataclasses import dataclass
from typing import Literal, get_args

from mdlm.objectives.base import Objective

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Settings for evaluating a split.

    Args:
        passes: independent passes over the split (1 suffices if nothing is drawn).
        batch_size: rows evaluated at a time (0: the training batch size).
        split: the split that `mdlm eval` evaluates by default. Training evaluates the validation
            split, whatever this is (see `split_in_training`).
        objective: the objective to report, if not the training objective: a bound for a network
            trained with another loss, or another protocol.
        ngrams: also evaluate n-gram baselines of the training split, which a network should beat.
    """

    passes: int = 4
    batch_size: int = 0
    split: Split = "valid"
    objective: Objective | None = None
    ngrams: bool = False

    def __post_init__(self):
        if self.passes < 1 or self.batch_size < 0:
            raise ValueError(
                f"passes={self.passes}, batch_size={self.batch_size}:"
                " passes must be at least 1, batch_size at least 0"
            )
        if self.split not in get_args(Split):
            raise ValueError(f"split={self.split!r}: must be one of {', '.join(get_args(Split))}")


SELECTS = "valid"
"""The split that selects the best checkpoint."""


def split_in_training(how: Perplexity, splits: tuple[str, ...]) -> str:
    """Returns the split to evaluate during training; `splits` are those of the data.

    It is the validation split. Data without one are evaluated on `how.split`, under its name, and
    no best checkpoint is selected.
    """
    return SELECTS if SELECTS in splits else how.split
