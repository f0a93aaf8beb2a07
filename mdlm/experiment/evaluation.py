"""How a run is evaluated, as the experiment says it."""

from dataclasses import dataclass

from mdlm.objectives.base import Objective


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How a split is scored.

    Args:
        passes: independent passes over the split (1 suffices where nothing is drawn).
        batch_size: rows scored at a time (0: the training batch).
        split: the split that `mdlm eval` scores unless told otherwise. Training evaluates the
            validation split, whatever this is (see `split_in_training`).
        objective: what is reported, where it is not what was trained: a bound for a network that
            trained on something else, or another protocol.
        ngrams: also score count tables of the training split, which a network should beat.
    """

    passes: int = 4
    batch_size: int = 0
    split: str = "valid"
    objective: Objective | None = None
    ngrams: bool = False

    def __post_init__(self):
        if self.passes < 1 or self.batch_size < 0:
            raise ValueError(f"passes={self.passes}, batch_size={self.batch_size}")


SELECTS = "valid"
"""The one split that checkpoints are selected by."""


def split_in_training(how: Perplexity, splits: tuple[str, ...]) -> str:
    """The split that is evaluated during training, of those that the data have.

    It is the validation split. Data without one are evaluated on the split of `how`, under the
    name of that split, and no checkpoint is selected by the result.
    """
    return SELECTS if SELECTS in splits else how.split
