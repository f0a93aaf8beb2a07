"""Digests of the text of shards, which say whether a text is still the one that was read.

Each finished shard has the digest of its own text, so a text may be mended behind them. It does not
depend on how the text is stored, or cut into pieces and chunks.
"""

import hashlib

from mdlm.data.store.manifest import Shard

END = b"\xff"
"""Stands for the end of a document: a byte that UTF-8 never has."""


class TextDigest:
    """The SHA-256 of texts and of where documents end, and the numbers of both."""

    def __init__(self):
        self._state = hashlib.sha256()
        self.characters = self.documents = 0

    def add(self, text: str) -> None:
        """Adds text of a document."""
        self._state.update(text.encode("utf-8", "surrogatepass"))
        self.characters += len(text)

    def end(self) -> None:
        """Adds the end of a document."""
        self._state.update(END)
        self.documents += 1

    def hexdigest(self) -> str:
        return self._state.hexdigest()

    def is_of(self, shard: Shard) -> bool:
        """Whether this is the text of a shard. One of an older version has no digest."""
        counts = (self.characters, self.documents) == (shard.characters, shard.documents)
        return counts and shard.text_sha256 in (None, self.hexdigest())
