"""Causal checkpoints that are imported as diffusion models: a mask token, and open attention.

The network keeps its parameters. Its attention is opened, and the logits about a token stay at the
token before it, where the network computes them (`mdlm.models.conversion`). The mask is a token
that tokenizer or user name, or a new one, whose embedding and logit are the means of all others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mdlm.interop.layout import Parts
from mdlm.interop.table import array_shapes
from mdlm.models.conversion import opened
from mdlm.objectives.nelbo import Nelbo
from mdlm.samplers.parallel import Parallel
from mdlm.samplers.unmasking_rules import Share
from mdlm.vocab import Vocab


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Tokens of a network that its checkpoint has no values for.

    Args:
        axes: the axis that counts tokens, by path of the array.
        columns: the number of tokens of the checkpoint.
        first: the first token without values. It and all after it get the means of those before.
    """

    axes: Mapping[str, int]
    columns: int
    first: int

    @classmethod
    def none(cls, columns: int) -> "NewTokens":
        return cls(axes={}, columns=columns, first=columns)

    def old(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the parts of the arrays that the checkpoint fills."""
        return {path: self._some(path, a, slice(self.columns)) for path, a in arrays.items()}

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the values of the new tokens."""
        for path, axis in self.axes.items():
            old = np.asarray(self._some(path, arrays[path], slice(self.first)), np.float32)
            new = self._some(path, arrays[path], slice(self.first, None))
            new[...] = old.mean(axis, keepdims=True).astype(new.dtype)

    def _some(self, path: str, array: np.ndarray, place: slice) -> np.ndarray:
        return (
            array if path not in self.axes else array[(slice(None),) * self.axes[path] + (place,)]
        )


def as_diffusion(parts: Parts, vocab: Vocab, *, is_new: bool) -> tuple[Parts, NewTokens]:
    """Returns the components of a diffusion model with the parameters of a causal one.

    `is_new` says whether the vocabulary's mask is a token that the checkpoint does not know.
    Raises InputError if the network is not causal.
    """
    known, columns = opened(parts.network), parts.network.columns
    network = replace(known, columns=max(columns, vocab.size))
    diffusion = replace(
        parts,
        network=network,
        objective=Nelbo(),
        sampler=Parallel(rule=Share(steps=32), block_size=32, temperature=0.0),
    )
    one, other = (array_shapes(network, columns) for columns in (8, 9))
    axes = {path: i for path in one for i, n in enumerate(one[path]) if n != other[path][i]}
    first = min(columns, vocab.mask_id) if is_new else columns
    return diffusion, NewTokens(axes=axes, columns=columns, first=first)
