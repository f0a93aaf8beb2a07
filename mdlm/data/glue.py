"""The tasks of GLUE (arXiv:1804.07461): one sentence or two, and a class or a number.

    cola   sentence                 unacceptable, acceptable
    sst2   sentence                 negative, positive
    mrpc   sentence1, sentence2     not_equivalent, equivalent
    qqp    question1, question2     not_duplicate, duplicate
    stsb   sentence1, sentence2     a number from 0 to 5
    mnli   premise, hypothesis      entailment, neutral, contradiction
    qnli   question, sentence       entailment, not_entailment
    rte    sentence1, sentence2     entailment, not_entailment

Columns and numbers of classes are those of the data set `nyu-mll/glue`. The labels of its test
splits are hidden (-1 in each row), so results are those of its validation splits, as in BERT, MDLM
and most papers. WNLI is left out, as there.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from mdlm.config.components import nearest
from mdlm.data.pairs import json_lines
from mdlm.data.text.files import check_expansion
from mdlm.data.text.hugging_face import HuggingFace
from mdlm.data.text.source import Source
from mdlm.errors import InputError

GlueTask = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"]
HIDDEN = -1
"""The label of rows whose label is not public."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The form of a task.

    Args:
        columns: of the sentence, or of both.
        labels: names of the classes in order; none for a task whose label is a number.
        rows: rows of the training split of `nyu-mll/glue`.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    rows: int


TASKS: dict[str, Task] = {
    "cola": Task(columns=("sentence",), labels=("unacceptable", "acceptable"), rows=8551),
    "sst2": Task(columns=("sentence",), labels=("negative", "positive"), rows=67349),
    "mrpc": Task(
        columns=("sentence1", "sentence2"), labels=("not_equivalent", "equivalent"), rows=3668
    ),
    "qqp": Task(
        columns=("question1", "question2"), labels=("not_duplicate", "duplicate"), rows=363846
    ),
    "stsb": Task(columns=("sentence1", "sentence2"), labels=(), rows=5749),
    "mnli": Task(
        columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        rows=392702,
    ),
    "qnli": Task(
        columns=("question", "sentence"), labels=("entailment", "not_entailment"), rows=104743
    ),
    "rte": Task(
        columns=("sentence1", "sentence2"), labels=("entailment", "not_entailment"), rows=2490
    ),
}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One or two sentences, and what belongs to them: the number of a class, or a number. `where`
    names the example in messages."""

    sentences: tuple[str, ...]
    target: float
    where: str

    @property
    def text(self) -> str:
        return "\n".join(self.sentences)


@dataclass(frozen=True, kw_only=True)
class Glue(Source):
    """A task of GLUE: rows with sentences and a label.

    `path` is a data set on the Hugging Face hub with a configuration for each task, or a folder:
    a copy of it, what `save_to_disk` wrote, or the files of the task, `train.jsonl` and
    `validation.jsonl` (also `.parquet`, or in a folder `mrpc/`), with the columns of GLUE. `valid`
    is its split `validation`, for MNLI `validation_matched`; MNLI's `validation_mismatched` is
    `test`.

    Reading raises InputError, with the row, if a column is missing, a sentence is no text, or a
    label is hidden (-1) or none of the task.
    """

    paths: ClassVar[tuple[str, ...]] = ("path",)

    task: GlueTask
    path: str = "nyu-mll/glue"

    def __post_init__(self):
        if self.task not in get_args(GlueTask):
            raise InputError(f"task={self.task!r:.80}{nearest(str(self.task), TASKS)}")

    @property
    def form(self) -> Task:
        return TASKS[self.task]

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "valid", "test") if self.task == "mnli" else ("train", "valid")

    @property
    def name(self) -> str:
        return f"GLUE's {self.task} in {self.path}"

    def examples(self, split: str) -> list[Example]:
        """Returns the examples of a split, in order. Raises InputError if one cannot be read."""
        self._check(split)
        own = {"train": "train", "valid": "validation", "test": "validation_mismatched"}[split]
        if (self.task, split) == ("mnli", "valid"):
            own = "validation_matched"
        found = [self._example(row, where) for where, row in self._rows(own)]
        if not found:
            raise InputError(f"{self.name}: its split {own} is empty")
        return found

    def _documents(self, split: str) -> list[str]:
        return [f"{one.text}\n{one.target:g}" for one in self.examples(split)]

    def _rows(self, own: str) -> Iterator[tuple[str, Any]]:
        """Yields each row of a split, which is named as in GLUE, after its place."""
        folder = Path(os.path.expanduser(self.path))
        is_saved = any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
        if not folder.is_dir() or is_saved:
            config = None if folder.is_dir() else self.task
            table = HuggingFace(path=self.path, config=config, train=own).table("train")
            yield from ((f"{self.path}, {own} row {i}", row) for i, row in enumerate(table))
            return
        files = _files(folder, self.task, own)
        if not files:
            raise InputError(
                f"{self.path}: no {own}.jsonl or {own}.parquet in it, nor in {self.task}/ in it"
            )
        for file in files:
            if file.suffix != ".parquet":
                used = ", ".join(map(repr, (*self.form.columns, "label")))
                yield from json_lines(file, used, _whole)
                continue
            yield from ((f"{file}, row {i}", row) for i, row in enumerate(_parquet(file)))

    def _example(self, row: Any, where: str) -> Example:
        columns = self.form.columns
        missing = [name for name in (*columns, "label") if name not in row]
        if missing:
            there = ", ".join(sorted(map(str, row))) or "none"
            raise InputError(
                f"{where}: no column {missing[0]!r}, only {there:.200}; the columns of"
                f" {self.task} are {', '.join(columns)}, label"
            )
        for name in columns:
            if not isinstance(row[name], str):
                raise InputError(f"{where}: {name!r} is {type(row[name]).__name__}, not text")
        target = self._target(row["label"], where)
        return Example(sentences=tuple(row[name] for name in columns), target=target, where=where)

    def _target(self, label: Any, where: str) -> float:
        names, is_number = self.form.labels, type(label) in (int, float)
        if is_number and label == HIDDEN:
            raise InputError(
                f"{where}: the label is {HIDDEN}, so it is hidden, as in GLUE's test splits; use"
                " a split with labels"
            )
        if names and (type(label) is not int or not 0 <= label < len(names)):
            known = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
            raise InputError(f"{where}: label {label!r:.40}: must be one of {known}")
        if not (is_number and math.isfinite(label)):
            raise InputError(f"{where}: label {label!r:.40}: must be a number")
        return float(label)


def _whole(digits: str) -> float:
    """Returns a whole number; an infinite one for more digits than any label has."""
    return int(digits) if len(digits) < 10 else math.inf


def _parquet(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a Parquet file. Raises InputError if it cannot be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
            check_expansion(path, path.stat().st_size, sum(g.total_byte_size for g in groups))
            return file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _files(folder: Path, task: str, own: str) -> list[Path]:
    """Returns the files of a split: one, or parts of a Parquet file as on the hub."""
    for place in (folder / task, folder):
        for ending in (".jsonl", ".jsonl.gz", ".parquet"):
            if (place / f"{own}{ending}").is_file():
                return [place / f"{own}{ending}"]
        if parts := sorted(place.glob(f"{own}-*-of-*.parquet")):
            return parts
    return []
