"""Whether a tokenizer has tokens for all of a text: some drop a character that they do not know."""

import re
from collections.abc import Iterable, Set

import tokenizers

from mdlm.data.text.utf8 import check_utf8
from mdlm.errors import InputError

SHOWN = 20
"""Characters of a text's beginning in a message."""


class Spelling:
    """Finds what of a text has no token.

    `forbidden` ids must not stand for text: an unknown character that becomes one has no token.
    """

    def __init__(
        self, encoder: tokenizers.Tokenizer, forbidden: Set[int], alphabet: Set[str] | None = None
    ):
        self.encoder, self.forbidden, self.alphabet = encoder, forbidden, alphabet
        added = encoder.get_added_tokens_decoder().values()
        names = sorted((t.content for t in added if not t.special), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, names))) if names else None
        self._known: set[str] = set()
        self._is_bpe = isinstance(encoder.model, tokenizers.models.BPE)

    def check(self, texts: Iterable[str]) -> None:
        """Raises InputError, with the first character and its place, if BPE would drop one, or a
        text is not UTF-8.

        Models of other kinds fail by themselves; then `refusal` tells where.
        """
        for text in texts:
            new = set(text) - self._known
            if any("\ud800" <= c <= "\udfff" for c in new):
                check_utf8(text, f"the text {text[:SHOWN]!r}")
            if not self._is_bpe:
                self._known |= new
                continue
            doubtful = {c for c in new if not (self.spells(c) and self.spells(c * 3))}
            self._known |= new - doubtful
            if doubtful and not self.spells(text):
                raise self.refusal([text])

    def spells(self, text: str) -> bool:
        """Whether all of a text, as normalizer and pre-tokenizer leave it, becomes tokens."""
        for part in self._added.split(text) if self._added else [text]:
            if self.encoder.normalizer is not None:
                part = self.encoder.normalizer.normalize_str(part)
            words = [part]
            if self.encoder.pre_tokenizer is not None:
                words = [word for word, _ in self.encoder.pre_tokenizer.pre_tokenize_str(part)]
            if not all(map(self._spells_word, words)):
                return False
        return True

    def _spells_word(self, word: str) -> bool:
        try:
            tokens = self.encoder.model.tokenize(word)
        except Exception:  # the library raises bare Exceptions
            return False
        if any(token.id in self.forbidden for token in tokens):
            return False
        # BPE counts bytes; what it drops is in no token.
        size = sum(end - start for start, end in (token.offsets for token in tokens))
        return not self._is_bpe or size == len(word.encode())

    def refusal(self, texts: Iterable[str]) -> InputError:
        """Returns an error that names the first piece of the texts without a token."""
        for text in texts:
            for run in re.finditer(r"\S+|\s+", text):
                if not self.spells(run.group()):
                    return self._error(text, *self._within(run.group(), run.start()))
        return InputError("the tokenizer cannot encode this text: use another, such as BPE()")

    def _within(self, run: str, start: int) -> tuple[str, int]:
        """Returns the first character without a token and its place; the run if it is a word."""
        if isinstance(self.encoder.model, tokenizers.models.BPE | tokenizers.models.Unigram):
            for i, character in enumerate(run):
                if not self.spells(character):
                    return character, start + i
        return run, start

    def _error(self, text: str, piece: str, start: int) -> InputError:
        code = f" (U+{ord(piece):04X})" if len(piece) == 1 else ""
        what = f"{'character' if code else 'word'} {piece[:80]!r}{code}"
        where = f"character {start:,} of the text {text[:SHOWN]!r}"
        where += "" if len(text) <= SHOWN else "..."
        lack = "has no token, and the tokenizer has no unknown token"
        remedy = "Bytes() and BPE() encode every character"
        if self.alphabet is not None:
            lack = f"is not in the tokenizer's alphabet of {len(self.alphabet)} characters"
            if piece.lower() in self.alphabet:
                remedy = f"Characters(lowercase=True) reads it as {piece.lower()!r}"
        return InputError(f"{what} {lack}: {remedy} ({where})")
