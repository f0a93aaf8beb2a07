"""Trains a tokenizer on texts that are read once, as a stream.

The result depends on the texts alone. The library's trainer for word pieces numbers the parts of
words in an order that changes from run to run, and breaks ties by those numbers. So it gets counted
words and an alphabet in a fixed order.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from mdlm.cluster.patient import apart
from mdlm.data.tokens.tokenizer import Report
from mdlm.errors import InputError

SPECIALS = ("[BOS]", "[EOS]", "[PAD]", "[MASK]")
ALPHABET = 1000
"""Maximum number of characters in word pieces: the most frequent ones."""
TRAINING = "training the tokenizer"
LONGEST = 1000
"""Characters after which a stretch without a space, or of spaces alone, is cut for learning. The
time of learning grows with the square of the longest word, and no vocabulary has such pieces."""
STRETCH = re.compile(rf"\S{{{LONGEST}}}|\s{{{LONGEST}}}")

log = logging.getLogger(__name__)


def bounded(texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts, cut within stretches of more than `LONGEST` characters without a break.

    A warning says at the end how many cuts there were.
    """
    cuts = 0
    for text in texts:
        start = 0
        for found in STRETCH.finditer(text):
            yield text[start : found.end()]
            start, cuts = found.end(), cuts + 1
        yield text[start:]
    if cuts:
        log.warning(
            "learning the tokenizer: %d stretches of %d characters without a break were cut",
            cuts,
            LONGEST,
        )


def reported(texts: Iterable[str], report: Report | None, message: str) -> Iterator[str]:
    """Yields the texts, and reports every million characters."""
    size = reported_size = 0
    for text in texts:
        size += len(text)
        if report and size // 10**6 > reported_size:
            reported_size = size // 10**6
            report(f"{message}, MB", reported_size, 0)
        yield text


def train(
    backend: tokenizers.Tokenizer,
    trainer: trainers.Trainer,
    texts: Iterable[str],
    report: Report | None,
) -> None:
    """Trains `backend` on texts, read once. Raises InputError if there is no text."""
    is_empty = True

    def read() -> Iterator[str]:
        nonlocal is_empty
        for text in bounded(reported(texts, report, "reading text for the tokenizer")):
            is_empty = is_empty and not text
            yield text
        if report:
            report(TRAINING, 0, 1)

    apart(lambda: backend.train_from_iterator(read(), trainer))
    if is_empty:
        raise InputError("no text to train a tokenizer on: the training text is empty")
    if report:
        report(TRAINING, 1, 1)


def count_words(
    texts: Iterable[str],
    normalizer: normalizers.Normalizer,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    report: Report | None,
) -> Counter[str]:
    """Returns how often each word occurs. Raises InputError if there is no word."""
    between_spaces: Counter[str] = Counter()
    for text in bounded(reported(texts, report, "reading text for the tokenizer")):
        between_spaces.update(normalizer.normalize_str(text).split())
    words: Counter[str] = Counter()
    for chunk, n in between_spaces.items():
        for word, _ in pre_tokenizer.pre_tokenize_str(chunk):
            words[word] += n
    if not words:
        raise InputError("no text to train a tokenizer on: the training text has no words")
    return words


def word_pieces(words: Counter[str], vocab_size: int, report: Report | None) -> dict[str, int]:
    """Returns a vocabulary: special tokens, [UNK], characters inside words (`##`), characters,
    larger pieces."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, n in words.items():
        for character in word:
            counts[character] += n
        inside.update(word[1:])
    alphabet = sorted(counts, key=lambda c: (-counts[c], c))[:ALPHABET]
    parts = [f"##{character}" for character in sorted(inside & set(alphabet))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIALS, "[UNK]", *parts],
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),
        min_frequency=2,
        show_progress=False,
    )
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if report:
        report(TRAINING, 0, 1)
    apart(lambda: backend.train_from_iterator(repeated(words), trainer))
    if report:
        report(TRAINING, 1, 1)
    return json.loads(backend.to_str())["model"]["vocab"]


def repeated(words: Counter[str], most: int = 10_000) -> Iterator[str]:
    """Yields texts in which each word occurs as often as counted, up to `most` words at a time."""
    for word, n in words.items():
        for start in range(0, n, most):
            yield f"{word} " * min(most, n - start)
