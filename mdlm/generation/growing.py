"""Text that grows token by token: what is shown of it never changes.

A token is not always a text of its own: bytes of one character may be several tokens, and some
tokenizers write a byte they cannot place by how the bytes around it turn out. So a piece of text is
given out only once no later token can change it. Each piece is decoded together with the tokens
before it, since many tokenizers drop the space in front of the first one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from mdlm.data.tokens.special_tokens import end_of
from mdlm.data.tokens.tokenizer import Tokenizer
from mdlm.foreign.shown import visible
from mdlm.generation.texts import END

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""The name of a token for one byte; bytes in a row are decoded together."""
UNKNOWN = "\ufffd"
"""What stands for bytes that are no character, or not yet one."""


class Growing:
    """The text of tokens that come one after another. The pieces of `add` and `end` together are
    `Tokenizer.decode` of all tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._ids = tokenizer, list[int]()
        added = tokenizer.backend.get_added_tokens_decoder()
        self._without_text = {i for i, token in added.items() if token.special}
        # The text of `_ids[:_told]` is given out; `_ids[_before:_told]` have some text, and are
        # decoded again with what follows.
        self._before = self._told = 0

    def add(self, ids: Sequence[int]) -> str:
        """Returns the text that is certain now, and was not before."""
        self._ids.extend(ids)
        stop = len(self._ids)
        while stop > self._told and not self._is_settled(stop):
            stop -= 1
        return self._text_to(stop)

    def end(self) -> str:
        """Returns the rest of the text."""
        return self._text_to(len(self._ids))

    def _is_settled(self, stop: int) -> bool:
        ids = reversed(self._ids[self._told : stop])
        last = next((i for i in ids if i not in self._without_text), None)
        name = None if last is None else self._tokenizer.backend.id_to_token(last)
        return not BYTE.fullmatch(name or "") and not self._decoded(stop).endswith(UNKNOWN)

    def _decoded(self, stop: int) -> str:
        return self._tokenizer.decode(self._ids[self._before : stop])

    def _text_to(self, stop: int) -> str:
        if stop == self._told:
            return ""
        added = self._decoded(stop)[len(self._decoded(self._told)) :]
        if added:
            self._before = self._told
        self._told = stop
        return added


def pieces(tokens: Iterable[Sequence[int]], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the text of tokens, as they come: together `Text.text`."""
    growing = Growing(tokenizer)
    for ids in tokens:
        if piece := growing.add(ids):
            yield piece
    if piece := growing.end():
        yield piece


def shown_pieces(tokens: Iterable[Sequence[int]], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the text of tokens for a terminal, as they come: together `Text.shown`."""
    eos = end_of(tokenizer.vocab)
    growing = Growing(tokenizer)
    # A line break at the end of a document is not shown; one between documents is, if there is
    # another.
    held = between = ""

    def said(piece: str) -> str:
        nonlocal held, between
        text = held + piece
        held = "\n" if text.endswith("\n") else ""
        text = visible(text.removesuffix("\n"))
        if text or held:
            text, between = between + text, ""
        return text

    for ids in tokens:
        found = ""
        for token in ids:
            found += said(growing.add([token]))
            if token == eos:
                found += f"{said(growing.end())}{between}\n{END}"
                growing, held, between = Growing(tokenizer), "", "\n"
        if found:
            yield found
    if rest := said(growing.end()) + held:
        yield rest
