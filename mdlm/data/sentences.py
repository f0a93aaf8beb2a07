"""Labelled sentences as the data of an experiment: rows of one sentence or two, with what belongs
to each row.

    [CLS] a [SEP]            one sentence; token types 0
    [CLS] a [SEP] b [SEP]    two; token types 0 up to the first [SEP], 1 after it

[CLS] and [SEP] are the tokens that begin and end a text in the tokenizer, as in BERT
(arXiv:1810.04805). What is too long loses tokens at its end; of two sentences the longer one, as
with `truncation=True` in `transformers`. Nothing is noised. The row counts once in the loss: its
first token is the only one in the loss mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int32, Int64

from mdlm.data.dataset import Split, TextData, text_fingerprint
from mdlm.data.glue import Glue
from mdlm.data.packing import Packing
from mdlm.data.rows.base import Rows, RowSet
from mdlm.data.rows.token_stream import TokenStream
from mdlm.data.tokenizers import TokenizerConfig
from mdlm.data.tokens.special_tokens import ends, padding, storage
from mdlm.data.tokens.tokenizer import Report, Tokenizer
from mdlm.errors import InputError
from mdlm.types import Vocab

ONLY = "packing=Sentences(...) is for labelled sentences: SentenceData(source=Glue(...))"
Tokens = Int32[np.ndarray, "..."]


@dataclass(frozen=True, kw_only=True)
class Sentences(Packing):
    """One example in each row of `length` tokens, padded. Padding is attended to by nothing."""

    def __post_init__(self):
        super().__post_init__()
        if self.length < 5:  # [CLS] a [SEP] b [SEP]
            raise ValueError(f"length={self.length}: must be at least 5")

    @property
    def protocol(self) -> str:
        return f"labelled sentences in rows of {self.length}"

    @property
    def frame(self) -> tuple[bool, bool]:
        return True, False

    @property
    def is_one_document(self) -> bool:
        return True

    @property
    def hides_padding(self) -> bool:
        return True

    def separator(self, vocab: Vocab) -> int | None:
        raise InputError(f"{ONLY}, which need no store")

    def over(self, stream: TokenStream, vocab: Vocab) -> RowSet:
        raise InputError(ONLY)

    def of_examples(
        self,
        sentences: Sequence[tuple[Tokens, ...]],
        targets: Sequence[float],
        vocab: Vocab,
    ) -> "SentenceRows":
        """Returns the rows of encoded examples: one or two sentences each, and their targets."""
        return SentenceRows(sentences, targets, vocab, self.length)


def lengths(sizes: Sequence[int], most: int) -> list[int]:
    """Returns how many tokens of each of one or two sentences are kept, at most `most` together.

    Of two the longer one is cut first; where both are cut they get halves, and the longer one (the
    second, if they are equal) the odd token. This is "longest_first" of the `tokenizers` library.
    """
    if len(sizes) == 1:
        return [min(sizes[0], most)]
    is_first_longer = sizes[0] > sizes[1]
    shorter, longer = sorted(sizes)
    longer = min(longer, max(shorter, most - shorter))
    if shorter + longer > most:
        shorter, longer = most // 2, most - most // 2
    return [longer, shorter] if is_first_longer else [shorter, longer]


class SentenceRows(RowSet):
    """Row i has the sentences of example i."""

    def __init__(
        self,
        sentences: Sequence[tuple[Tokens, ...]],
        targets: Sequence[float],
        vocab: Vocab,
        length: int,
    ):
        self.sentences, self.vocab, self.length = sentences, vocab, length
        self.targets = np.asarray(targets, np.float32)
        self.start, self.end = ends(vocab)
        self.kept = [
            lengths([len(part) for part in parts], length - 1 - len(parts)) for parts in sentences
        ]

    @property
    def placed(self) -> int:
        return sum(map(sum, self.kept))

    @property
    def dropped(self) -> int:
        return sum(len(part) for parts in self.sentences for part in parts) - self.placed

    @property
    def is_padded(self) -> bool:
        return True

    @property
    def inserted(self) -> dict[int, int]:
        return {}

    def __len__(self) -> int:
        return len(self.sentences)

    def loss_tokens(self) -> int:
        return len(self)

    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        self.check(at)
        shape = (len(at), self.length)
        tokens = np.full(shape, padding(self.vocab, is_seen=False), storage(self.vocab))
        is_valid, types = np.zeros(shape, bool), np.zeros(shape, np.int32)
        for row, number in enumerate(at):
            tokens[row, 0], end = self.start, 1
            for kind, (part, kept) in enumerate(
                zip(self.sentences[number], self.kept[number], strict=True)
            ):
                begin, end = end, end + kept + 1
                tokens[row, begin : end - 1], tokens[row, end - 1] = part[:kept], self.end
                types[row, begin:end] = kind
            is_valid[row, :end] = True
        first = np.zeros(shape, bool)
        first[:, 0] = True
        return Rows(
            tokens=tokens,
            loss_mask=first,
            is_valid=is_valid,
            token_types=types,
            target=self.targets[at],
        )


@dataclass(frozen=True, kw_only=True)
class SentenceData(TextData):
    """Sentences with labels, for objectives that predict these. They are encoded anew each time:
    there is no store."""

    source: Glue
    tokenizer: TokenizerConfig
    packing: Sentences
    store: None = None

    @property
    def classes(self) -> int:
        return len(self.source.form.labels)

    def encode(self, split: str, tokenizer: Tokenizer, report: Report | None = None) -> Split:
        examples = self.source.examples(split)
        parts = [text for one in examples for text in one.sentences]
        try:
            encoded = iter(tokenizer.encode(parts, report, f"tokenizing {split}, characters"))
            sentences = [tuple(next(encoded) for _ in one.sentences) for one in examples]
            targets = [one.target for one in examples]
            rows = self.packing.of_examples(sentences, targets, tokenizer.vocab)
        except InputError as error:
            raise InputError(f"{self.source.name}, {split} split: {error}") from error
        return Split(
            rows=rows,
            documents=len(examples),
            text_bytes=sum(len(text.encode("utf-8", "replace")) for text in parts),
            text_characters=sum(map(len, parts)),
            text_fingerprint=text_fingerprint(self.source.documents(split)),
            unk_id=None,
        )

    def of_files(self, files: tuple[str, ...], split: str) -> "SentenceData":
        """Returns the same task in another folder."""
        if len(files) != 1:
            raise InputError(f"{', '.join(files)}: name one folder with the task")
        return replace(self, source=replace(self.source, path=files[0]))
