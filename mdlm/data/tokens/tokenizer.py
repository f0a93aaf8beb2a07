"""The run-time tokenizer: text to token ids and back, with the `tokenizers` library.

Encoding adds no special tokens, and text that spells one (`[MASK]`) is encoded as text, so clean
text never contains the mask. The packing adds the special tokens of rows. Long texts are encoded
piece by piece, cut only where a cut cannot change a token.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer

from mdlm.errors import InputError
from mdlm.vocab import Vocab

Report = Callable[[str, int, int], None]
"""Called with what is done and its unit (`tokenizing train, characters`), the amount done, and the
total, 0 if it is unknown. Work that has no amounts has no unit."""

PIECE = 2**16
"""Characters encoded at a time: the library needs about 100 bytes for each token it returns."""
BATCH = 2**22
"""Characters between two calls of `report`."""
FILES = ("special_tokens.json", "tokenizer.json")
"""The files of a saved tokenizer."""


class Tokenizer:
    """Encodes text to ids and decodes ids to text; `vocab` has the ids of the special tokens.

    `closed_alphabet`: only characters that are tokens can be encoded. `made_by` is the
    configuration that built the tokenizer, as text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        vocab: Vocab,
        *,
        closed_alphabet: bool = False,
        made_by: str = "",
    ):
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.vocab = vocab
        self.made_by = made_by
        self.alphabet = set(backend.get_vocab(with_added_tokens=False)) if closed_alphabet else None
        self.cut_before = safe_cut(backend)

    @property
    def mask_token(self) -> str:
        return str(self.backend.id_to_token(self.vocab.mask_id))

    @property
    def fingerprint(self) -> str:
        """A checksum of everything that determines how text is encoded."""
        return hashlib.sha256(self._state().encode()).hexdigest()

    def id_of(self, token: str) -> int:
        """Returns the id of a token by its exact name. Raises InputError if there is none."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise InputError(f"the tokenizer has no token {token!r}")
        return found

    def encode(
        self,
        texts: list[str],
        report: Report | None = None,
        message: str = "tokenizing, characters",
    ) -> list[Int32[np.ndarray, "..."]]:
        """Returns the ids of each text. `report` gets the characters done and their total.

        Raises InputError if a character is not in a closed alphabet, or the text encodes to the
        mask token.
        """
        if self.alphabet is not None:
            self._check_alphabet(texts, self.alphabet)
        total, done = sum(map(len, texts)), 0
        encoded: list[list[np.ndarray]] = [[] for _ in texts]
        pending: list[tuple[int, str]] = []
        size = 0

        def flush():
            found = self.backend.encode_batch_fast([piece for _, piece in pending], False, False)
            for (i, _), encoding in zip(pending, found, strict=True):
                encoded[i].append(np.array(encoding.ids, np.int32))
            pending.clear()

        for i, text in enumerate(texts):
            for piece in self._pieces(text):
                pending.append((i, piece))
                size += len(piece)
                if size >= BATCH:
                    flush()
                    done, size = done + size, 0
                    if report:
                        report(message, done, total)
        flush()
        if report:
            report(message, total, total)
        empty = np.zeros(0, np.int32)
        ids = [np.concatenate(parts) if parts else empty for parts in encoded]
        if any((part == self.vocab.mask_id).any() for part in ids):
            raise InputError(
                f"the text itself encodes to the mask token {self.mask_token!r}: "
                "name another mask token"
            )
        return ids

    def decode(
        self, ids: Sequence[int] | Integer[np.ndarray, " n"], keep_special: bool = False
    ) -> str:
        """Returns the text of `ids`, without special tokens (mask included) if not
        `keep_special`."""
        return self.backend.decode(
            np.asarray(ids, np.int64).tolist(), skip_special_tokens=not keep_special
        )

    def pieces(self, ids: Iterable[int]) -> dict[int, str]:
        """Returns the text that each token adds after another token; special tokens as names.

        Tokenizers drop the space of a text's first token, so each is decoded after a word.
        """
        texts = ((i, self.decode([i])) for i in range(self.vocab.size))
        word, before = next(((i, t) for i, t in texts if t.isascii() and t.isalpha()), (None, ""))

        def piece(token: int) -> str:
            if word is not None:
                both = self.decode([word, token], keep_special=True)
                if both.startswith(before):
                    return both[len(before) :]
            return self.decode([token], keep_special=True)

        return {token: piece(token) for token in sorted(set(ids))}

    def files(self) -> dict[str, str]:
        """Returns the contents of the two files of a saved tokenizer, by name."""
        return dict(zip(FILES, (self._special(), self.backend.to_str()), strict=True))

    @staticmethod
    def from_files(files: Mapping[str, str]) -> "Tokenizer":
        """Returns a tokenizer from what `files` returned. Raises any error if it is damaged."""
        special_tokens, backend = (files[name] for name in FILES)
        special = json.loads(special_tokens)
        return Tokenizer(
            tokenizers.Tokenizer.from_str(backend),
            Vocab(**special["vocab"]),
            closed_alphabet=special["closed_alphabet"],
            made_by=special["made_by"],
        )

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `special_tokens.json`, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files().items():
            replace_file(folder / name, text)

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Returns a saved tokenizer. Raises InputError if it is missing or damaged."""
        folder = Path(folder)
        try:
            return Tokenizer.from_files({n: (folder / n).read_text("utf-8") for n in FILES})
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(f"{folder}: its tokenizer cannot be read: {error}") from error

    def _special(self) -> str:
        values = {
            "vocab": vars(self.vocab),
            "closed_alphabet": self.alphabet is not None,
            "made_by": self.made_by,
        }
        return json.dumps(values, indent=1)

    def _state(self) -> str:
        return json.dumps([self.backend.to_str(), vars(self.vocab)])

    def _pieces(self, text: str) -> Iterator[str]:
        """Yields the text in pieces, cut where a cut cannot change a token."""
        start = 0
        while self.cut_before and len(text) - start > PIECE:
            found = self.cut_before.search(text, start + PIECE)
            if found is None:
                break
            yield text[start : found.start()]
            start = found.start()
        yield text[start:]

    def _check_alphabet(self, texts: list[str], alphabet: set[str]) -> None:
        normalizer = self.backend.normalizer
        for text in texts:
            unknown = set(normalizer.normalize_str(text) if normalizer else text) - alphabet
            if unknown:
                char = min(unknown)
                remedy = (
                    f"Characters(lowercase=True) reads it as {char.lower()!r}"
                    if char.lower() in alphabet
                    else "Bytes() and BPE() encode every character"
                )
                raise InputError(
                    f"character {char!r} (U+{ord(char):04X}) is not in the tokenizer's alphabet of "
                    f"{len(alphabet)} characters: {remedy}"
                )


def safe_cut(backend: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """Returns a pattern before whose matches a text may be cut without changing its tokens.

    The result is None if no such pattern is known. A vocabulary without merges has one token per
    character. With GPT-2's or BERT's rule for words, no word continues from a visible character
    to a space after it.
    """
    state = json.loads(backend.to_str())
    if state["model"]["type"] == "BPE" and not state["model"]["merges"]:
        return re.compile(r"(?s).")
    if (state["pre_tokenizer"] or {}).get("type") in ("ByteLevel", "BertPreTokenizer"):
        return re.compile(r"(?<=\S) ")
    return None


def replace_file(path: Path, text: str) -> None:
    """Writes a file atomically: under a temporary name, which is then renamed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
