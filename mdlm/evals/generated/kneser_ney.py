"""An interpolated n-gram language model (Kneser and Ney 1995; Chen and Goodman 1998).

For a token w after the n - 1 tokens h, h' being h without its first token,

    p_n(w | h) = max(a(h w) - D, 0) / a(h) + D N(h) / a(h) p_{n-1}(w | h')

a(h w) is the count of the n-gram at the highest order, and below it the number of different tokens
that stand before it; a(h) is the sum of a(h w) over w, N(h) the number of different w. An h that
was never seen leaves p_{n-1}(w | h'). Below the unigrams all tokens but the mask are equally
likely, so every token has a probability. D = n_1 / (n_1 + 2 n_2), of an order in which n_1 n-grams
have a = 1 and n_2 have a = 2; D = 1/2 where n_1 = 0, as for the letters of a long text.

Every sequence begins with a boundary, which is read and never predicted. It has nothing before it,
so n-grams that begin with it have their counts at every order.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mdlm.errors import InputError
from mdlm.types import Vocab

Report = Callable[[int, int], None]
Tokens = Int[np.ndarray, "..."]
FALLBACK = 0.5
NONE = -1
"""The number of an n-gram that was never seen, or has tokens before the boundary."""


@dataclass(frozen=True, eq=False)
class Table:
    """The n-grams of one order: `codes` (sorted) and a of each; a(h), N(h) by the number of h."""

    codes: Int[np.ndarray, " m"]
    count: Float[np.ndarray, " m"]
    total: Float[np.ndarray, " h"]
    types: Float[np.ndarray, " h"]
    discount: float

    def numbers(self, codes: Int[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        """Returns the number of each n-gram, NONE if it was never seen."""
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[at] == codes, at, NONE)


class KneserNey:
    """The model, counted on sequences of tokens. `tokens` is how many were counted.

    Raises InputError if there is no token.
    """

    def __init__(
        self,
        sequences: Iterable[np.ndarray],
        vocab: Vocab,
        *,
        order: int = 5,
        report: Report = lambda done, of: None,
    ):
        if order < 1:
            raise InputError(f"order={order}: must be at least 1")
        self.order, self.vocab, self.base = order, vocab, vocab.size + 1
        units = self._with_boundaries(list(sequences))
        self.tokens = int((units != vocab.size).sum())
        if not self.tokens:
            raise InputError("no token to count n-grams of: give more training text")
        self.tables: list[Table] = []
        counted = self._counted(units, report)
        for n, (codes, first, number, count) in enumerate(counted, 1):
            if n < len(counted):
                # The n-grams that end an (n+1)-gram, once for each such (n+1)-gram.
                _, longer, _, _ = counted[n]
                before = np.bincount(number[longer], minlength=len(codes)).astype(float)
                count = np.where(before > 0, before, count)
            self.tables.append(self._table(codes, count, self._predicted(units, first)))

    def __call__(self, sequence: Tokens) -> Float[np.ndarray, "..."]:
        """Returns -log p of each token of a sequence, in nats, given those before it; infinite for
        the mask."""
        units = self._with_boundaries([np.asarray(sequence)])
        p = np.full(len(units), 1 / (self.vocab.size - 1))
        p[units == self.vocab.mask_id] = 0
        history = np.zeros(len(units), np.int64)  # the one n-gram of order 0
        for table in self.tables:
            codes = np.where(history != NONE, history * self.base + units, NONE)
            number = table.numbers(codes)
            known = np.flatnonzero((history != NONE) & (table.total[history] > 0))
            h = history[known]
            count = np.where(number[known] != NONE, table.count[number[known]], 0)
            seen = np.maximum(count - table.discount, 0) / table.total[h]
            p[known] = seen + table.discount * table.types[h] / table.total[h] * p[known]
            history = np.r_[NONE, number[:-1]]
        with np.errstate(divide="ignore"):
            return -np.log(p[1:])

    def _with_boundaries(self, sequences: Sequence[np.ndarray]) -> Int[np.ndarray, " t"]:
        """All sequences in one, a boundary before each."""
        parts = [part for own in sequences for part in ([self.vocab.size], own)]
        return np.concatenate([*parts, np.zeros(0)]).astype(np.int64)

    def _predicted(self, units: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Whether the tokens at these places are predicted: all but boundaries."""
        return units[at] != self.vocab.size

    def _counted(self, units: np.ndarray, report: Report) -> list[tuple[np.ndarray, ...]]:
        """By order: codes of the n-grams, a place where each ends, the number of the n-gram that
        ends at each place, and counts. No n-gram contains a boundary but at its beginning."""
        is_boundary = units == self.vocab.size
        history, found = np.zeros(len(units), np.int64), []
        for n in range(self.order):
            report(n, self.order)
            inside = history != NONE
            if n:
                inside &= ~is_boundary
            places = np.flatnonzero(inside)
            if not len(places):  # no sequence is so long
                break
            codes, first, own, count = np.unique(
                history[places] * self.base + units[places],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            number = np.full(len(units), NONE)
            number[places] = own
            found.append((codes, places[first], number, count.astype(float)))
            history = np.r_[NONE, number[:-1]]
        report(self.order, self.order)
        return found

    def _table(self, codes: np.ndarray, count: np.ndarray, predicted: np.ndarray) -> Table:
        """The table of an order, from a of each n-gram; boundaries are not predicted."""
        count = np.where(predicted, count, 0)
        histories = self.tables[-1].codes if self.tables else np.zeros(1)
        h = codes // self.base
        once, twice = (int((count == n).sum()) for n in (1, 2))
        return Table(
            codes=codes,
            count=count,
            total=np.bincount(h, count, len(histories)),
            types=np.bincount(h, predicted, len(histories)),
            discount=once / (once + 2 * twice) if once else FALLBACK,
        )
