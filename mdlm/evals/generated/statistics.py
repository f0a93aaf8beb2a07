"""Numbers that need the texts alone: entropy, distinct n-grams, repetition, self-BLEU.

Texts are sequences of units, tokens or words. All but `entropy` and `repetition` compare texts with
each other, so they depend on how many there are: only equal numbers of texts of equal length can be
compared.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from mdlm.evals.generated.halves import Chosen

WORD = re.compile(r"\w+|[^\w\s]")
ORDERS = (1, 2, 3, 4)
"""The n-grams of BLEU."""
UNSEEN = 0.1
"""What self-BLEU counts where no n-gram of an order is found (Chen and Cherry 2014, method 1)."""

Units = Integer[np.ndarray, "..."]


def words(texts: Sequence[str]) -> list[Units]:
    """Returns the words and punctuation marks of texts, as numbers: the same word, the same one."""
    known: dict[str, int] = {}
    return [
        np.array([known.setdefault(word, len(known)) for word in WORD.findall(text)], np.int64)
        for text in texts
    ]


def entropy(units: Units) -> float:
    """Returns the entropy of the frequencies of a text's units, in nats; 0 for an empty text."""
    if not len(units):
        return 0.0
    share = np.unique(units, return_counts=True)[1] / len(units)
    return float(-(share * np.log(share)).sum())


def repetition(units: Units, n: int = 4) -> float:
    """Returns the fraction of a text's n-grams that occurred in it before (seq-rep-n, Welleck et
    al. 2019); 0 for a text without any."""
    [grams] = _numbered([units], n)
    return 1 - len(np.unique(grams)) / len(grams) if len(grams) else 0.0


class Distinct:
    """The n-grams of all texts that are different, divided by all n-grams (Li et al. 2016)."""

    def __init__(self, texts: Sequence[Units], n: int):
        self.grams = Grams(texts, n)

    def __call__(self, chosen: Chosen) -> float:
        use = chosen[self.grams.text]
        total = self.grams.count[use].sum()
        return float(len(np.unique(self.grams.gram[use])) / total) if total else np.nan


class SelfBleu:
    """The mean BLEU-4 of each text with all others as its references (Zhu et al. 2018): high where
    texts are alike.

    n-gram counts are clipped by the largest count in one reference; the brevity penalty takes the
    reference whose length is nearest (of two, the shorter).
    """

    def __init__(self, texts: Sequence[Units]):
        self.lengths = np.array([len(text) for text in texts])
        self.grams = [Grams(texts, n) for n in ORDERS]

    def __call__(self, chosen: Chosen) -> float:
        return float(self.each(chosen).mean()) if chosen.sum() > 1 else np.nan

    def each(self, chosen: Chosen) -> np.ndarray:
        """Returns the BLEU of each chosen text with the other chosen ones as references."""
        total = np.zeros(int(chosen.sum()))
        for n, grams in zip(ORDERS, self.grams, strict=True):
            found = np.bincount(grams.text, grams.clipped(chosen), len(chosen))[chosen]
            possible = np.maximum(self.lengths[chosen] - n + 1, 1)
            if n == 1:
                has_any = found > 0
            total += np.log(np.where(found > 0, found, UNSEEN) / possible) / len(ORDERS)
        return np.where(has_any, np.exp(total) * self._brevity(chosen), 0.0)

    def _brevity(self, chosen: Chosen) -> np.ndarray:
        lengths = self.lengths[chosen]
        apart = np.abs(lengths[:, None] - lengths[None]).astype(float)
        np.fill_diagonal(apart, np.inf)
        # The nearest length, the shorter of two that are equally near.
        order = np.lexsort((np.broadcast_to(lengths, apart.shape), apart), axis=1)
        nearest = lengths[order[:, 0]]
        safe = np.maximum(lengths, 1)
        return np.where(lengths > nearest, 1.0, np.exp(1 - nearest / safe)) * (lengths > 0)


class Grams:
    """The n-grams of texts: for each text and n-gram in it, `text`, `gram` (numbers) and `count`.

    They are in order of the n-gram, then of the count, largest first.
    """

    def __init__(self, texts: Sequence[Units], n: int):
        grams = _numbered(texts, n)
        text = np.repeat(np.arange(len(texts)), [len(own) for own in grams])
        codes = np.concatenate([*grams, np.zeros(0, np.int64)]) * len(texts) + text
        codes, count = np.unique(codes, return_counts=True)
        gram, text = np.divmod(codes, max(1, len(texts)))
        order = np.lexsort((-count, gram))
        self.gram, self.text, self.count = gram[order], text[order], count[order]

    def clipped(self, chosen: Chosen) -> np.ndarray:
        """Returns each count, at most the largest one of the same n-gram in another chosen text;
        0 in texts that are not chosen."""
        out = np.zeros(len(self.gram))
        use = np.flatnonzero(chosen[self.text])
        if not len(use):
            return out
        gram, count = self.gram[use], self.count[use]
        is_first = np.r_[True, gram[1:] != gram[:-1]]
        first = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
        second = np.minimum(first + 1, len(use) - 1)
        has_second = (gram[second] == gram) & (second > first)
        of_others = np.where(is_first, np.where(has_second, count[second], 0), count[first])
        out[use] = np.minimum(count, of_others)
        return out


def _numbered(texts: Sequence[Units], n: int) -> list[Units]:
    """Returns the n-grams of each text as numbers: the same n-gram of any text, the same one."""
    ends = np.cumsum([len(text) for text in texts])
    units = np.concatenate([*texts, np.zeros(0, np.int64)]).astype(np.int64)
    number = np.unique(units, return_inverse=True)[1].astype(np.int64)
    size, grams = int(number.max(initial=0)) + 1, number
    for last in range(1, n):  # each n-gram is one that is shorter by one, and its last unit
        codes = grams[:-1] * size + number[last:]
        grams = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    starts = np.r_[0, ends[:-1]] if len(ends) else ends
    return [grams[a : max(a, b - n + 1)] for a, b in zip(starts, ends, strict=True)]
