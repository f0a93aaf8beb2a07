"""The tasks of GLUE as files and folders, and their rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from mdlm.data import Glue, Pretrained, SentenceData, Sentences
from mdlm.data.glue import TASKS
from mdlm.data.loader import evaluation_batches
from mdlm.data.sentences import lengths
from mdlm.errors import InputError

WORDS = "the film was a long dull fine story and we saw it".split()
MRPC = [
    {"sentence1": "the film was fine", "sentence2": "a fine film", "label": 1, "idx": 0},
    {"sentence1": "a long story and a dull film", "sentence2": "we saw it", "label": 0, "idx": 1},
]


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def mrpc(tmp_path):
    for split in ("train", "validation"):
        write_lines(tmp_path / "glue" / "mrpc" / f"{split}.jsonl", MRPC)
    return tmp_path / "glue"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a WordPiece tokenizer."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*special, *WORDS, "##s", "?"])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(special)
    folder = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(folder / "tokenizer.json"))
    return folder


def data(path, bert, length=12, task="mrpc"):
    return SentenceData(
        source=Glue(task=task, path=str(path)),
        tokenizer=Pretrained(name=str(bert)),
        packing=Sentences(length=length),
    )


def test_rows_have_both_sentences(mrpc, bert):
    dataset = data(mrpc, bert).load()
    rows = dataset.valid.rows.all()
    spelled = [
        " ".join(dataset.tokenizer.backend.id_to_token(int(i)) for i in row) for row in rows.tokens
    ]
    assert spelled == [
        "[CLS] the film was fine [SEP] a fine film [SEP] [PAD] [PAD]",
        "[CLS] a long story and a dull [SEP] we saw it [SEP]",
    ]
    assert rows.token_types.tolist() == [[0] * 6 + [1] * 4 + [0] * 2, [0] * 8 + [1] * 4]
    assert rows.is_valid.sum(-1).tolist() == [10, 12]
    assert rows.loss_mask[:, 0].all() and not rows.loss_mask[:, 1:].any()
    assert rows.target.tolist() == [1.0, 0.0]
    assert dataset.valid.tokens == 2 and dataset.valid.documents == 2
    assert dataset.data.classes == 2
    assert "rows hold 94.1% of the text" in dataset.protocol("valid")
    batch = next(iter(evaluation_batches(dataset.valid.rows, 3)))
    assert batch["target"].tolist() == [1.0, 0.0, 0.0]
    assert batch["loss_mask"].sum() == 2 and batch["token_types"].shape == (3, 12)


@pytest.mark.parametrize("length", [5, 6, 9, 12, 16])
def test_rows_are_those_of_transformers(bert, length, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(bert / "tokenizer.json"), cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
    )  # fmt: skip
    theirs.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    random = np.random.default_rng(1)
    say = lambda: " ".join(random.choice([*WORDS, "films?", "xyz"], random.integers(1, 12)))
    pairs = [(say(), say()) for _ in range(40)]
    for task, columns in (("mrpc", ("sentence1", "sentence2")), ("cola", ("sentence",))):
        rows = [{**dict(zip(columns, pair, strict=False)), "label": 1} for pair in pairs]
        write_lines(tmp_path / task / "train.jsonl", rows)
        found = data(tmp_path, bert, length, task).load().train.rows.all()
        texts = [list(part) for part in zip(*(pair[: len(columns)] for pair in pairs), strict=True)]
        how = dict(truncation=True, padding="max_length", return_token_type_ids=True)
        due = theirs(*texts, max_length=length, **how)
        np.testing.assert_array_equal(found.tokens, due["input_ids"])
        np.testing.assert_array_equal(found.is_valid, due["attention_mask"])
        types = np.where(found.is_valid, found.token_types, 0)
        np.testing.assert_array_equal(types, due["token_type_ids"])


def test_the_longer_sentence_is_cut_first():
    assert lengths([3, 4], 7) == [3, 4]
    assert lengths([3, 9], 7) == [3, 4] and lengths([9, 3], 7) == [4, 3]
    assert lengths([9, 8], 7) == [4, 3] and lengths([8, 8], 7) == [3, 4]
    assert lengths([9], 7) == [7] and lengths([0, 9], 7) == [0, 7]


def test_forms_of_a_task(mrpc, tmp_path):
    """Lines, Parquet in parts as on the hub, a folder of `save_to_disk`: the same examples."""
    datasets = pytest.importorskip("datasets")
    due = Glue(task="mrpc", path=str(mrpc)).examples("train")
    assert [(e.sentences, e.target) for e in due] == [
        ((row["sentence1"], row["sentence2"]), float(row["label"])) for row in MRPC
    ]
    table = datasets.Dataset.from_list(MRPC)
    table.select([0]).to_parquet(tmp_path / "mrpc" / "train-00000-of-00002.parquet")
    table.select([1]).to_parquet(tmp_path / "mrpc" / "train-00001-of-00002.parquet")
    labels = datasets.ClassLabel(names=list(TASKS["mrpc"].labels))
    saved = datasets.DatasetDict({"train": table.cast_column("label", labels)})
    saved.save_to_disk(tmp_path / "saved")
    write_lines(tmp_path / "plain" / "train.jsonl", MRPC)
    for path in (tmp_path, tmp_path / "saved", tmp_path / "plain"):
        found = Glue(task="mrpc", path=str(path)).examples("train")
        assert [(e.sentences, e.target) for e in found] == [(e.sentences, e.target) for e in due]


def test_mnli_has_two_validation_splits(tmp_path):
    row = {"premise": "a", "hypothesis": "b", "idx": 0}
    for split, label in (("matched", 0), ("mismatched", 2)):
        write_lines(tmp_path / f"validation_{split}.jsonl", [{**row, "label": label}])
    source = Glue(task="mnli", path=str(tmp_path))
    assert source.splits == ("train", "valid", "test")
    assert [source.examples(split)[0].target for split in ("valid", "test")] == [0.0, 2.0]
    assert Glue(task="rte", path="x").splits == ("train", "valid")


def test_every_task_has_its_columns(tmp_path):
    for task, form in TASKS.items():
        row = {name: "some words" for name in form.columns}
        label = len(form.labels) - 1 if form.labels else 3.8
        write_lines(tmp_path / task / "train.jsonl", [{**row, "label": label, "idx": 0}])
        [found] = Glue(task=task, path=str(tmp_path)).examples("train")
        assert found.target == label and len(found.sentences) == len(form.columns)
    assert len(TASKS) == 8


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("mrpc", {"label": -1}, r"train.jsonl:1: the label is -1, so it is hidden"),
        ("stsb", {"label": -1.0}, r"so it is hidden, as in GLUE's test splits"),
        ("mrpc", {"label": 2}, r"label 2: must be one of 0 \(not_equivalent\), 1 \(equivalent\)"),
        ("mrpc", {"label": 1.0}, r"label 1.0: must be one of 0"),
        ("mrpc", {"label": 10**400}, r"label inf: must be one of 0"),
        ("mrpc", {"label": True}, r"label True: must be one of 0"),
        ("stsb", {"label": "high"}, r"label 'high': must be a number"),
        ("mrpc", {"sentence2": None}, r"'sentence2' is NoneType, not text"),
        ("qnli", {}, r"no column 'question', only .*; the columns of qnli are question, sentence"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, task, change, message):
    write_lines(tmp_path / "train.jsonl", [{**MRPC[0], **change}])
    with pytest.raises(InputError, match=message) as error:
        Glue(task=task, path=str(tmp_path)).examples("train")
    assert "\n" not in str(error.value)


def test_missing_files_and_tasks(tmp_path, bert):
    with pytest.raises(InputError, match=r"no train.jsonl or train.parquet in it, nor in mrpc/"):
        Glue(task="mrpc", path=str(tmp_path)).examples("train")
    with pytest.raises(InputError, match=r"GLUE's mrpc in .* has no test split, only train, valid"):
        Glue(task="mrpc", path=str(tmp_path)).examples("test")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"train.parquet cannot be read: ") as error:
        Glue(task="mrpc", path=str(tmp_path)).examples("train")
    assert "\n" not in str(error.value)
    (tmp_path / "validation.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"validation.jsonl is empty"):
        Glue(task="mrpc", path=str(tmp_path)).examples("valid")
    with pytest.raises(ValueError, match="length=4: must be at least 5"):
        Sentences(length=4)
