"""Unigram and bigram baselines, evaluated on the same tokens as a network.

Counts of the training rows, smoothed on the training rows alone: the unigram by adding one to
each count, the bigram by interpolation with the unigram, p(x | y) = (c(y, x) + m p(x)) / (c(y) + m)
(Dirichlet prior), with m chosen on a held-out tenth of the training rows.
"""

import numpy as np

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Baselines:
    """Tables counted on training rows: `tokens` and `mask` (the loss mask), `[n l]`; `size` is the
    vocabulary size."""

    def __init__(self, tokens: np.ndarray, mask: np.ndarray, size: int):
        tenth = max(1, len(tokens) // 10)
        held = (tokens[:tenth], mask[:tenth])
        rest = (tokens[tenth:], mask[tenth:]) if len(tokens) > 1 else (tokens, mask)
        unigram, pairs = _unigram(*rest, size), _pairs(*rest, size)
        costs = [_bigram_nats(*held, pairs, unigram, m) for m in STRENGTHS]
        self.strength = STRENGTHS[int(np.argmin(costs))]
        self.unigram, self.pairs = _unigram(tokens, mask, size), _pairs(tokens, mask, size)

    def nats(self, tokens: np.ndarray, mask: np.ndarray) -> dict[str, float]:
        """Returns the nats of all rows under each model, `{"unigram": ..., "bigram": ...}`.

        Only tokens where `mask` is True count, the same as for a network. A row's first token
        counts under the unigram.
        """
        return {
            "unigram": float(-np.log(self.unigram[tokens][mask]).sum()),
            "bigram": _bigram_nats(tokens, mask, self.pairs, self.unigram, self.strength),
        }


def _unigram(tokens: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    counts = np.bincount(tokens[mask], minlength=size) + 1.0
    return counts / counts.sum()


def _pairs(
    tokens: np.ndarray, mask: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns sorted codes `y * size + x` of the pairs that occur, their counts, counts of y."""
    before, after = tokens[:, :-1].astype(np.int64), tokens[:, 1:]
    both = mask[:, :-1] & mask[:, 1:]
    codes, counts = np.unique((before * size + after)[both], return_counts=True)
    return codes, counts, np.bincount(before[both], minlength=size)


def _bigram_nats(tokens, mask, pairs, unigram, strength: float) -> float:
    codes, counts, totals = pairs
    p = unigram[tokens].copy()
    before, after = tokens[:, :-1].astype(np.int64), tokens[:, 1:]
    code = before * len(unigram) + after
    found = np.clip(np.searchsorted(codes, code), 0, max(0, len(codes) - 1))
    seen = np.where(codes[found] == code, counts[found], 0) if len(codes) else 0
    p[:, 1:] = (seen + strength * p[:, 1:]) / (totals[before] + strength)
    return float(-np.log(p[mask]).sum())
