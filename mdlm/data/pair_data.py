"""Prompts and responses as the data of an experiment: for fine-tuning on responses alone."""

from dataclasses import dataclass, replace
from typing import ClassVar

from mdlm.data.dataset import Split, TextData, text_fingerprint
from mdlm.data.pairs import ENDINGS, Fields, Pair, encode_pairs, read_pairs
from mdlm.data.responses import Responses
from mdlm.data.text.source import SPLITS, Source
from mdlm.data.text.splits import check_fractions
from mdlm.data.tokenizers import TokenizerConfig
from mdlm.data.tokens.chat import PLAIN
from mdlm.data.tokens.special_tokens import end_of
from mdlm.data.tokens.tokenizer import Report, Tokenizer
from mdlm.errors import InputError

OWN_NAMES = {"train": "train", "valid": "validation", "test": "test"}
"""The splits of a data set that are read."""


@dataclass(frozen=True, kw_only=True)
class Pairs(Source):
    """Prompts and responses: `.jsonl` files (also `.gz`), folders of data sets, or names on the
    Hugging Face hub.

    `train` names the training pairs. A line, or a row, has the fields `prompt` and `response`, or
    `messages`, a conversation that ends with the assistant's answer; `fields` gives them other
    names. `config` is a part of a data set. If `valid` names nothing, the last `valid_fraction` of
    the training pairs is held out, and `test_fraction` too, if `test` names nothing either.

    Reading raises InputError, with the line, if a field is missing, no text, or empty.
    """

    paths: ClassVar[tuple[str, ...]] = SPLITS

    train: str
    valid: str | None = None
    test: str | None = None
    valid_fraction: float = 0.05
    test_fraction: float = 0.0
    fields: Fields = Fields()
    config: str | None = None

    def __post_init__(self):
        check_fractions(self.valid_fraction, self.test_fraction)

    @property
    def _held_out(self) -> tuple[float, float]:
        valid = 0.0 if self.valid else self.valid_fraction
        return valid, 0.0 if self.valid or self.test else self.test_fraction

    @property
    def splits(self) -> tuple[str, ...]:
        valid, test = self._held_out
        there = (True, bool(self.valid or valid), bool(self.test or test))
        return tuple(split for split, is_there in zip(SPLITS, there, strict=True) if is_there)

    @property
    def name(self) -> str:
        return f"prompts and responses {self.train}"

    def check_apart(self) -> None:
        for split, named in (("valid", self.valid), ("test", self.test)):
            if named == self.train and self.train.endswith(ENDINGS):
                raise InputError(
                    f"{named} is named for the {split} split and also for training: name another"
                )

    def pairs(self, split: str) -> list[Pair]:
        """Returns the pairs of a split, in order. Raises InputError if they cannot be read."""
        self._check(split)
        named = getattr(self, split)
        if split == "train" or named is None:
            found = self._part(self._read(self.train, "train"), split)
        else:
            found = self._read(named, split)
        if not found:
            raise InputError(f"{self.name}: too few pairs for a {split} split; name a file for it")
        return found

    def _part(self, pairs: list[Pair], split: str) -> list[Pair]:
        """Returns what a split has of the training pairs: valid and test are the last ones."""
        each = self.rows_together
        total = len(pairs) // each
        valid, test = (max(1, round(total * f)) if f else 0 for f in self._held_out)
        ends = {"train": total - test - valid, "valid": total - test, "test": total}
        first = {"train": 0, "valid": ends["train"], "test": ends["valid"]}
        return pairs[each * max(first[split], 0) : each * max(ends[split], 0)]

    def _read(self, name: str, split: str) -> list[Pair]:
        return read_pairs(name, self.fields, split=OWN_NAMES[split], config=self.config)

    def _documents(self, split: str) -> list[str]:
        return [pair.text for pair in self.pairs(split)]


@dataclass(frozen=True, kw_only=True)
class PairData(TextData):
    """Prompts and their responses. Only responses are noised, scored and counted.

    Conversations become tokens by the tokenizer's chat template, which comes with an imported
    checkpoint. A tokenizer without one gets a plain one, with a line for each message. They are
    encoded anew each time: there is no store.
    """

    source: Pairs
    tokenizer: TokenizerConfig
    packing: Responses
    store: None = None

    def encode(self, split: str, tokenizer: Tokenizer, report: Report | None = None) -> Split:
        if split == "train":
            self.source.check_apart()
        pairs = self.source.pairs(split)
        if tokenizer.chat.template is None and any(not isinstance(p.prompt, str) for p in pairs):
            eos = end_of(tokenizer.vocab)
            ends = tokenizer.chat.ends or (() if eos is None else (eos,))
            tokenizer.chat = replace(tokenizer.chat, template=PLAIN, ends=ends)
        if report:
            report(f"tokenizing {split}", 0, 0)
        encoded = encode_pairs(
            pairs, tokenizer, start=self.packing.start(tokenizer.vocab), is_whole=True
        )
        texts = [pair.text for pair in pairs]
        try:
            together = self.source.rows_together if split == "train" else 1
            rows = self.packing.of_pairs(encoded, tokenizer.vocab, together=together)
        except InputError as error:
            raise InputError(f"{self.source.name}, {split} split: {error}") from error
        # The text of a conversation has what its template writes.
        whole = [
            text if isinstance(pair.prompt, str) else tokenizer.decode([*own.prompt, *own.response])
            for text, pair, own in zip(texts, pairs, encoded, strict=True)
        ]
        return Split(
            rows=rows,
            documents=len(pairs),
            text_bytes=sum(len(text.encode("utf-8", "replace")) for text in whole),
            text_characters=sum(map(len, whole)),
            text_fingerprint=text_fingerprint(texts),
            unk_id=tokenizer.unk_id,
        )

    def of_files(self, files: tuple[str, ...], split: str) -> "PairData":
        """Returns another file of pairs as one split of such data."""
        if len(files) != 1:
            raise InputError(f"{', '.join(files)}: name one file of prompts and responses")
        named = {} if split == "train" else {split: files[0]}
        source = replace(self.source, train=files[0], valid=None, test=None, valid_fraction=0.0)
        return replace(self, source=replace(source, test_fraction=0.0, **named))

    def prompts(self, split: str, tokenizer: Tokenizer, most: int) -> list[list[int]]:
        """Returns the tokens of the first prompts of a split, at most `most`."""
        pairs = self.source.pairs(split)[:most]
        start = self.packing.start(tokenizer.vocab)
        found = encode_pairs(pairs, tokenizer, start=start)
        return [list(pair.prompt) for pair in found]
