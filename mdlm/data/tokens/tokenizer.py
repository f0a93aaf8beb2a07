"""The run-time tokenizer: text to token ids and back, with the `tokenizers` library.

Encoding adds no special tokens, and text that spells one (`[MASK]`) is encoded as text, so clean
text never contains the mask. The packing adds the special tokens of rows. Long texts are encoded
piece by piece, cut only where a cut cannot change a token. Nothing of a text is dropped.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer

from mdlm.data.tokens import chat
from mdlm.data.tokens.chat import Chat
from mdlm.data.tokens.cuts import safe_cut
from mdlm.data.tokens.plain_text import for_text, unknown_id
from mdlm.data.tokens.spelling import Spelling
from mdlm.errors import InputError
from mdlm.files import replaced
from mdlm.foreign.typed_json import decoded
from mdlm.vocab import Vocab

Report = Callable[[str, int, int], None]
"""Called with what is done and its unit (`tokenizing train, characters`), the amount done, and the
total, 0 if it is unknown. Work that has no amounts has no unit."""

PIECE = 2**16
"""Characters encoded at a time: the library needs about 100 bytes for each token it returns."""
BATCH = 2**22
"""Characters between two calls of `report`."""
FILES = ("special_tokens.json", "tokenizer.json")
"""The files that every saved tokenizer has; `chat.FILE` is there if it knows conversations."""


class Special(TypedDict):
    """The contents of `special_tokens.json`."""

    vocab: Vocab
    closed_alphabet: bool
    made_by: str


class Tokenizer:
    """Encodes text to ids and decodes ids to text; `vocab` has the ids of the special tokens.

    `closed_alphabet`: only characters that are tokens can be encoded. `made_by` is the
    configuration that built the tokenizer, as text. `unk_id` is the token of text that has none
    of its own, None if there is no such token. `cut_before`: see `cuts.safe_cut`. `chat` is what it
    knows of conversations.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        vocab: Vocab,
        *,
        closed_alphabet: bool = False,
        made_by: str = "",
        chat: Chat | None = None,
    ):
        roles = {vocab.mask_id, vocab.bos_id, vocab.eos_id, vocab.pad_id} - {None}
        self._encoder = for_text(backend, roles)
        self.backend = backend
        self.vocab = vocab
        self.made_by = made_by
        self.chat = chat or Chat()
        self.alphabet = set(backend.get_vocab(with_added_tokens=False)) if closed_alphabet else None
        self.cut_before = safe_cut(self._encoder)
        self.unk_id = unknown_id(backend)
        self._roles = np.array(sorted(roles), np.int32)
        self._spelling = Spelling(self._encoder, roles, self.alphabet)

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

        Raises InputError, with the place, if a part of a text has no token.
        """
        self._spelling.check(texts)
        total, done = sum(map(len, texts)), 0
        encoded: list[list[np.ndarray]] = [[] for _ in texts]
        pending: list[tuple[int, str]] = []
        size = 0

        def flush():
            pieces = [piece for _, piece in pending]
            try:
                found = self._encoder.encode_batch_fast(pieces, False, False)
            except Exception as error:  # the library raises bare Exceptions
                raise self._spelling.refusal(texts) from error
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
        if any(np.isin(part, self._roles).any() for part in ids):
            raise self._spelling.refusal(texts)
        return ids

    def encode_after(self, text: str) -> Int32[np.ndarray, "..."]:
        """Returns the ids of a text that stands after other text: without what the tokenizer puts
        in front of a text, such as a space. Raises InputError as `encode`."""
        [alone] = self.encode([text])
        try:
            before, both = self.encode(["\n", f"\n{text}"])
        except InputError:  # there is no token for a line break
            return alone
        n = len(before)
        is_apart = np.array_equal(both[:n], before) and self.unk_id not in before.tolist()
        return both[n:] if is_apart else alone

    def encode_marked(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts in which the names of special tokens mean these tokens: only
        for text that a program wrote around checked text, such as a chat template."""
        found = self._marked.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    @functools.cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.backend.to_str())

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
        """Returns the contents of the files of a saved tokenizer, by name."""
        found = dict(zip(FILES, (self._special(), self.backend.to_str()), strict=True))
        return found | chat.files(self.chat)

    @staticmethod
    def from_files(files: Mapping[str, str]) -> "Tokenizer":
        """Returns a tokenizer from what `files` returned. Raises any error if it is damaged."""
        special_tokens, backend = (files[name] for name in FILES)
        special = decoded(special_tokens, Special)
        return Tokenizer(
            tokenizers.Tokenizer.from_str(backend),
            special["vocab"],
            closed_alphabet=special["closed_alphabet"],
            made_by=special["made_by"],
            chat=chat.of_files(files),
        )

    def save(self, folder: str | Path) -> None:
        """Writes the files of `files`, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files().items():
            with replaced(folder / name) as new:
                new.write_text(text, encoding="utf-8")

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Returns a saved tokenizer. Raises InputError if it is missing or damaged."""
        folder = Path(folder)
        try:
            there = [*FILES, *([chat.FILE] if (folder / chat.FILE).exists() else [])]
            return Tokenizer.from_files(
                {n: (folder / n).read_text(encoding="utf-8") for n in there}
            )
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
