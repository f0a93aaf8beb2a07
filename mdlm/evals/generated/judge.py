"""Who judges texts: a language model that gives each token of a text its -log p, in nats.

A text is read in the judge's own tokens, whatever tokens it was written in: its documents are
encoded anew, with the judge's end token where one ends. A judge without an end token reads each
document by itself. What the judge's rows begin with stands in front, and is not scored.

What is not scored is not counted: the first token of a text that nothing stands in front of, for
networks, and end tokens, as `Ends` says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from mdlm.data.rows.base import RowSet
from mdlm.data.tokens.special_tokens import end_of
from mdlm.data.tokens.text_size import TextSizes
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.errors import InputError
from mdlm.evals.generated.kneser_ney import KneserNey
from mdlm.evals.generated.statistics import entropy

Report = Callable[[int, int], None]
Text = Sequence[str]
"""The documents of a text. Each but the last is followed by an end, so the last may be empty."""
Tokens = Int[np.ndarray, "..."]

Ends = Literal["none", "first", "all"]
"""The end tokens of a text that are scored (all are read): none, as in BD3-LM's code; the first, as
in MDLM's; or all."""
COUNTED = 2**22
"""The most tokens of a training split that n-grams are counted of."""


class Judge(Protocol):
    """A language model with its tokenizer.

    `start` is the token that stands in front of each text, None for none; `protocol` says who
    judges, by which rule of contexts, and whether first tokens are scored.
    """

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def start(self) -> int | None: ...
    @property
    def protocol(self) -> str: ...

    def nats(self, sequences: Sequence[Tokens], report: Report) -> list[Float[np.ndarray, "..."]]:
        """Returns -log p of each token given those before it, NaN where it is not scored."""
        ...

    def features(self, sequences: Sequence[Tokens], report: Report) -> np.ndarray | None:
        """Returns a vector for each sequence, `[n d]`; None if the judge has none."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What a judge says of n texts: sums over the scored tokens of each.

    `read` are the tokens of each text as the judge reads them, `entropy` is that of all tokens of a
    text, ends included, and `unknown` the fraction of the tokens that stand for text which the
    judge has no token for.
    """

    texts: Sequence[Text]
    nats: Float[np.ndarray, " n"]
    tokens: Float[np.ndarray, " n"]
    bytes: Float[np.ndarray, " n"]
    entropy: Float[np.ndarray, " n"]
    read: list[Tokens]
    features: np.ndarray | None
    unknown: float


def judged(
    judge: Judge,
    texts: Sequence[Text],
    ends: Ends = "none",
    report: Report = lambda done, of: None,
) -> Judged:
    """Returns what a judge says of texts. Raises InputError if it cannot read one of them."""
    sequences, text = retokenised(judge, texts)
    nats = judge.nats(sequences, report)
    used = [
        ~np.isnan(found) & _counts(own, judge, ends)
        for own, found in zip(sequences, nats, strict=True)
    ]

    def by_text(values: list[Any]) -> np.ndarray:
        return np.bincount(text, np.array(values, np.float64), len(texts))

    size, pairs = TextSizes.of(judge.tokenizer), list(zip(sequences, used, strict=True))
    spelled = by_text([size.total(own[at])[0] for own, at in pairs])
    of_all = by_text([size.total(own)[0] for own in sequences])
    whole = np.array([sum(len(one.encode("utf-8", "replace")) for one in own) for own in texts])
    begin = int(judge.start is not None)
    read: list[Any] = [[] for _ in texts]
    for own, number in zip(sequences, text, strict=True):
        read[number].append(own[begin:])
    read = [np.concatenate(own) for own in read]
    unknown, every = judge.tokenizer.unk_id, np.concatenate(read)
    return Judged(
        texts=texts,
        nats=by_text([found[at].sum() for found, at in zip(nats, used, strict=True)]),
        tokens=by_text([at.sum() for at in used]),
        # Where tokens do not spell a text exactly, the scored ones get their share of it.
        bytes=whole * spelled / np.maximum(of_all, 1),
        entropy=np.array([entropy(own) for own in read]),
        read=read,
        features=judge.features(read, report),
        unknown=0.0 if unknown is None else float((every == unknown).sum() / max(1, len(every))),
    )


def retokenised(judge: Judge, texts: Sequence[Text]) -> tuple[list[Tokens], Int[np.ndarray, " s"]]:
    """Returns the sequences that a judge reads, and the number of the text that each is of: one for
    each text, or, without an end token, for each document. Raises InputError if a text has a
    character that the judge has no token for."""
    tokenizer, start = judge.tokenizer, [] if judge.start is None else [judge.start]
    end = end_of(tokenizer.vocab)
    sequences: list[Any] = []
    text: list[int] = []
    for number, documents in enumerate(texts):
        try:
            encoded = tokenizer.encode(list(documents))
        except InputError as error:
            raise InputError(
                f"text {number}: the judge has no tokens for it: {error}; take another judge"
            ) from error
        if end is None:
            parts = [[*start, *own] for own in encoded]
        else:
            parts = [[*start, *encoded[0], *(i for own in encoded[1:] for i in (end, *own))]]
        sequences += [np.array(part, np.int64) for part in parts]
        text += [number] * len(parts)
    return sequences, np.array(text, np.int64)


def _counts(tokens: Tokens, judge: Judge, ends: Ends) -> np.ndarray:
    """Which tokens of a sequence are counted: not what stands in front, and ends as asked for."""
    is_end = tokens == end_of(judge.tokenizer.vocab)
    counts = np.ones(len(tokens), bool)
    if judge.start is not None:
        counts[0] = is_end[0] = False
    if ends == "first":
        is_end &= np.cumsum(is_end) > 1
    return counts if ends == "all" else counts & ~is_end


@dataclass(frozen=True, kw_only=True, eq=False)
class NgramJudge:
    """Judges by n-grams of the training text."""

    model: KneserNey
    tokenizer: Tokenizer
    start: int | None
    protocol: str

    @staticmethod
    def of(
        rows: RowSet,
        tokenizer: Tokenizer,
        *,
        start: int | None,
        order: int = 5,
        report: Report = lambda done, of: None,
    ) -> "NgramJudge":
        """Returns the judge that is counted on the rows of a training split, or on its first rows
        if it is large. If rows begin with a token, `start` is that."""
        few = rows.first(max(1, COUNTED // rows.length))
        sequences = [
            tokens[is_text]
            for some in few.chunks()
            for tokens, is_text in zip(some.tokens, some.loss_mask, strict=True)
        ]
        model = KneserNey(sequences, tokenizer.vocab, order=order, report=report)
        words = (
            f"interpolated Kneser-Ney {order}-gram of the {'first ' * (len(few) < len(rows))}"
            f"{model.tokens:,} tokens of the training split; contexts of {order - 1} tokens, first"
            " token scored"
        )
        return NgramJudge(model=model, tokenizer=tokenizer, start=start, protocol=words)

    def nats(self, sequences: Sequence[Tokens], report: Report) -> list[Float[np.ndarray, "..."]]:
        found = []
        for number, own in enumerate(sequences):
            report(number, len(sequences))
            found.append(self.model(own))
        report(len(sequences), len(sequences))
        return found

    def features(self, sequences: Sequence[Tokens], report: Report) -> None:
        return None
