"""Data sets from the Hugging Face hub, or from folders that the `datasets` library reads."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mdlm.data.text import hub_stream
from mdlm.data.text.files import Piece, gather
from mdlm.data.text.source import SPLITS, Source
from mdlm.errors import InputError

ROWS = 1000
"""Rows of a data set read at a time."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Source):
    """A data set of the Hugging Face hub, or a folder: Parquet and the like, or `save_to_disk`.

    `path` is its name or folder, `config` its part, `revision` a branch, tag or commit of the hub,
    and `text_field` the column of the text. `data_dir` selects a folder inside the data set.
    `train`, `valid` and `test` are the data set's own names of its splits (None: no such split).
    With `held_out_documents` the valid split is that many documents from the end of train, as is
    usual for OpenWebText (the last 100,000), or from its start (`held_out_at`); `valid` is then
    ignored.

    With `streaming`, rows are read over the network and not kept on disk; a lost connection is
    resumed (`hub_stream.stream`). Folders written by `save_to_disk` are always read from disk.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    config: str | None = None
    data_dir: str | None = None
    text_field: str = "text"
    train: str = "train"
    valid: str | None = "validation"
    test: str | None = "test"
    revision: str | None = None
    held_out_documents: int = 0
    held_out_at: Literal["end", "start"] = "end"
    streaming: bool = False

    def __post_init__(self):
        if self.held_out_documents < 0:
            raise ValueError(f"held_out_documents={self.held_out_documents}: must be at least 0")
        if self.held_out_at not in ("end", "start"):
            raise ValueError(f"held_out_at={self.held_out_at!r}: must be 'end' or 'start'")

    @property
    def _names(self) -> dict[str, str | None]:
        """The data set's own name for each split."""
        valid = self.train if self.held_out_documents else self.valid
        return {"train": self.train, "valid": valid, "test": self.test}

    @property
    def splits(self) -> tuple[str, ...]:
        import datasets

        if self._is_saved:
            stored = self._open(lambda: datasets.load_from_disk(self.path))
            there = list(stored) if isinstance(stored, datasets.DatasetDict) else [self.train]
        else:
            there = self._open(
                lambda: datasets.get_dataset_split_names(
                    self.path, self.config, data_dir=self.data_dir, revision=self.revision
                )
            )
        return tuple(split for split in SPLITS if self._names[split] in there)

    @property
    def name(self) -> str:
        part = self.config or self.data_dir
        return f"data set {self.path}" + (f" ({part})" if part else "")

    @property
    def is_near(self) -> bool:
        return Path(self.path).exists()

    def version(self) -> str | None:
        """Returns the fingerprints of a saved folder, or the hub's commit if the hub answers."""
        if self._is_saved:
            return ", ".join(self.table(split)._fingerprint for split in self.splits)
        if Path(self.path).exists():
            return None
        import huggingface_hub

        try:
            return huggingface_hub.HfApi().dataset_info(self.path, revision=self.revision).sha
        except Exception:  # an unreachable hub must not stop the run
            return None

    @property
    def _is_saved(self) -> bool:
        marks = ("dataset_dict.json", "state.json")
        return any((Path(self.path) / mark).is_file() for mark in marks)

    def _open(self, read: Callable[[], Any]) -> Any:
        """Returns `read()`. Raises InputError, in one line, if the library fails."""
        away = None if Path(self.path).exists() else hub_stream.hub_trouble()
        try:
            return read()
        except Exception as error:  # the library raises many kinds of errors
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if away is not None:
                reason = f"the hub does not answer ({away}); name a folder with a copy of it"
            raise InputError(f"{self.name} cannot be read: {reason}") from error

    def table(self, split: str, streaming: bool = False) -> Any:
        """Returns the library's data set, with all its columns, for the whole split that holds
        `split`. Raises InputError if it cannot be read."""
        import datasets

        def read() -> Any:
            name = self._names[split]
            if not self._is_saved:
                return datasets.load_dataset(
                    self.path,
                    self.config,
                    data_dir=self.data_dir,
                    split=name,
                    revision=self.revision,
                    streaming=streaming,
                )
            stored = datasets.load_from_disk(self.path)
            return stored[name] if isinstance(stored, datasets.DatasetDict) else stored

        return self._open(read)

    def _check_field(self, there: list[str]) -> None:
        if self.text_field not in there:
            raise InputError(f"{self.name}: no field {self.text_field!r}, only {', '.join(there)}")

    def _range(self, split: str, total: int | None) -> tuple[int, int | None]:
        """Returns the range of rows of the data set's own split that make up `split`."""
        held_out = self.held_out_documents
        if not held_out or split == "test":
            return 0, total
        at_start = self.held_out_at == "start"
        if total is None:
            if at_start:
                return (held_out, None) if split == "train" else (0, held_out)
            raise InputError(
                f"{self.name} does not say how many rows it has, so streaming cannot find the last "
                f"{held_out}: set streaming=False, or held_out_at='start'"
            )
        if held_out >= total:
            raise InputError(
                f"{self.name}: held_out_documents={held_out} of {total} documents "
                f"leaves none to train on, must be below {total}"
            )
        at = held_out if at_start else total - held_out
        return (0, at) if (split == "train") != at_start else (at, total)

    def _text(self, value: Any, split: str, row: int) -> str:
        if isinstance(value, str):
            return value
        raise InputError(
            f"{self.name}: {self.text_field!r} of {split} row {row} is "
            f"{type(value).__name__}, not text"
        )

    def _documents(self, split: str) -> list[str]:
        return gather(self._pieces(split, None))

    def _pieces(self, split: str, position: Any) -> Iterator[Piece]:
        if self.streaming and not self._is_saved:
            yield from self._streamed(split, position)
            return
        rows = self.table(split)
        self._check_field(rows.column_names)
        rows = rows.select_columns([self.text_field])
        first, last = self._range(split, len(rows))
        assert last is not None
        for start in range(first + (position or 0), last, ROWS):
            stop = min(start + ROWS, last)
            texts = self._open(lambda a=start, b=stop: rows[a:b][self.text_field])
            for row, text in enumerate(texts, start - first):
                text = self._text(text, split, row)
                done = (row + 1) / (last - first)
                yield Piece(text=text, ends=True, position=row + 1, done=done)

    def _streamed(self, split: str, position: Any) -> Iterator[Piece]:
        known = self.table(split, streaming=True).info.splits or {}
        name = self._names[split]
        total = (known[name].num_examples or None) if name in known else None
        first, last = self._range(split, total)
        if position is None:
            position = {"state": None, "behind": first, "row": first}
        if last is not None and position["row"] >= last:
            return

        found = hub_stream.stream(lambda: self.table(split, streaming=True), position, self.name)
        for values, position in found:
            row = position["row"]
            self._check_field(list(values))
            text = self._text(values[self.text_field], split, row - 1 - first)
            done = (row - first) / (last - first) if last else None
            yield Piece(text=text, ends=True, position=position, done=done)
            if row == last and self.held_out_documents:
                return
