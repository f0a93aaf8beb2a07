"""Rows of prompts and responses, of which only the responses are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from mdlm.data.packing import Packing
from mdlm.data.pairs import Encoded
from mdlm.data.rows.base import Rows, RowSet
from mdlm.data.rows.shuffle import Order, Shuffled, Together
from mdlm.data.rows.token_stream import TokenStream
from mdlm.data.tokens.special_tokens import end_of, ends, padding, storage
from mdlm.errors import InputError
from mdlm.types import Vocab

FILLED, ONCE, NEVER = "filled", "once", "never"


@dataclass(frozen=True, kw_only=True)
class Responses(Packing):
    """Prompts and responses in rows of `length`; loss on the responses. Prompts are read, and
    neither noised, scored nor counted.

    Args:
        eos: what ends a response. "once": an EOS, which is scored, then padding that nothing
            attends to. "filled": the rest of the row is scored EOS, so that a network learns to end
            early on a canvas that is too long (LLaDA, arXiv:2502.09992, pads a batch so; here all
            rows have one length). "never": nothing.
        packed: several pairs share a row, as many as fit in their order; attention stays inside
            each. Otherwise each has a row of its own.
        bos: a prompt that is a text begins with BOS, as rows of pretraining did. Conversations
            begin as their template says.

    A pair that is longer than a row is left out; the protocol says how much text rows hold.
    """

    eos: Literal["once", "filled", "never"] = ONCE
    packed: bool = False
    bos: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.eos not in (ONCE, FILLED, NEVER):
            raise ValueError(f"eos={self.eos!r}: must be 'once', 'filled' or 'never'")
        if self.packed and self.eos == FILLED:
            raise ValueError("eos='filled' fills a row, and packed=True puts several pairs in one")

    @property
    def protocol(self) -> str:
        how = "packed in" if self.packed else "in"
        said = {ONCE: "EOS after each", FILLED: "filled with EOS, which counts", NEVER: "no EOS"}
        return f"responses given prompts, {how} rows of {self.length}, {said[self.eos]}"

    @property
    def frame(self) -> tuple[bool, bool]:
        return self.bos, False

    @property
    def is_one_document(self) -> bool:
        return self.eos != NEVER

    @property
    def hides_padding(self) -> bool:
        return self.eos != FILLED

    @property
    def splits_attention(self) -> bool:
        return self.packed

    @property
    def has_prompts(self) -> bool:
        return True

    def start(self, vocab: Vocab) -> int | None:
        """Returns the token that prompts begin with, if any."""
        return ends(vocab)[0] if self.bos else None

    def separator(self, vocab: Vocab) -> int | None:
        raise InputError(
            "packing=Responses(...) is for prompts and responses, PairData(source=Pairs(...)),"
            " which need no store"
        )

    def over(self, stream: TokenStream, vocab: Vocab) -> RowSet:
        raise InputError(
            "packing=Responses(...) is for prompts and responses: PairData(source=Pairs(...))"
        )

    def of_pairs(self, pairs: Sequence[Encoded], vocab: Vocab, *, together: int = 1) -> "PairRows":
        """Returns the rows of encoded pairs. So many `together`, one after another, are one
        example: they are left out together, and training takes them one after the other.

        Raises InputError if none fits.
        """
        if together > 1 and self.packed:
            raise InputError("packing.packed=True: the responses of a preference have rows each")
        end = None
        if self.eos != NEVER:
            end = end_of(vocab)
            if end is None:
                raise InputError("the tokenizer has no EOS: name one, or use eos='never'")
        return PairRows(pairs, vocab, end=end, packing=self, together=together)


class PairRows(RowSet):
    """Row i has the pairs from number `starts[i]` up to `starts[i + 1]`, of those that fit."""

    def __init__(
        self,
        pairs: Sequence[Encoded],
        vocab: Vocab,
        *,
        end: int | None,
        packing: Responses,
        together: int = 1,
    ):
        self.together = together
        self.length, self.vocab, self.end, self.packing = packing.length, vocab, end, packing
        needed = [len(pair) + len(self._ending(pair)) for pair in pairs]
        longest = [max(needed[i : i + together]) for i in range(0, len(needed), together)]
        fits = [longest[i // together] <= self.length for i in range(len(needed))]
        self.pairs = [pair for pair, is_in in zip(pairs, fits, strict=True) if is_in]
        self._dropped = sum(len(p) for p, is_in in zip(pairs, fits, strict=True) if not is_in)
        if not self.pairs:
            raise InputError(
                f"none of {len(pairs)} pairs fits a row of length={self.length}: the shortest has"
                f" {min(longest)} tokens, its end included; use longer rows, or shorter texts"
            )
        self.sizes = [n for n, is_in in zip(needed, fits, strict=True) if is_in]
        firsts, used = [0], 0
        for i, size in enumerate(self.sizes):
            if i and (not packing.packed or used + size > self.length):
                firsts.append(i)
                used = 0
            used += size
        self.starts = np.array([*firsts, len(self.pairs)], np.int64)

    def _ending(self, pair: Encoded) -> tuple[int, ...]:
        """The token after a response that has no end of its own."""
        return () if self.end is None or pair.is_ended else (self.end,)

    @property
    def placed(self) -> int:
        return sum(map(len, self.pairs))

    @property
    def dropped(self) -> int:
        return self._dropped

    @property
    def is_padded(self) -> bool:
        return self.packing.hides_padding

    @property
    def inserted(self) -> dict[int, int]:
        if self.end is None:
            return {}
        added = sum(map(len, map(self._ending, self.pairs)))
        if self.packing.eos == FILLED:
            added += len(self) * self.length - sum(self.sizes)
        return {self.end: added}

    def __len__(self) -> int:
        return len(self.starts) - 1

    def order(self, seed: int) -> Order:
        if self.together == 1:
            return super().order(seed)
        return Together(Shuffled(len(self) // self.together, seed), self.together)

    def loss_tokens(self) -> int:
        return sum(len(pair.response) for pair in self.pairs) + sum(self.inserted.values())

    def take(self, at: Int64[np.ndarray, " n"]) -> Rows:
        self.check(at)
        filler = self.end if self.packing.eos == FILLED else None
        nothing = padding(self.vocab, is_seen=False)
        shape = (len(at), self.length)
        tokens = np.full(shape, nothing if filler is None else filler, storage(self.vocab))
        is_valid = np.full(shape, filler is not None)
        loss_mask = is_valid.copy()
        segments = np.zeros(shape, np.int32)
        for row, number in enumerate(at):
            begin = 0
            for i in range(self.starts[number], self.starts[number + 1]):
                pair = self.pairs[i]
                end = begin + self.sizes[i]
                answer = begin + len(pair.prompt)
                tokens[row, begin:end] = (*pair.prompt, *pair.response, *self._ending(pair))
                loss_mask[row, begin:answer], loss_mask[row, answer:end] = False, True
                is_valid[row, begin:end] = True
                segments[row, begin:] = i - self.starts[number]
                begin = end
        return Rows(
            tokens=tokens,
            loss_mask=loss_mask,
            is_valid=is_valid,
            segment_ids=segments if self.packing.packed else None,
        )
