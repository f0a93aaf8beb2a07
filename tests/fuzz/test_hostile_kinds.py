"""One hostile file of each kind that SECURITY.md names: refused in one line, nothing changed."""

import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

SECURITY = Path(__file__).parent.parent.parent / "SECURITY.md"


def replace(path, *at, by):
    """Replaces a value in a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    inner = value
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = by
    path.write_text(json.dumps(value), encoding="utf-8")


def safetensors(path, dtype):
    header = {"network.x": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"abcd")


def many_newlines(work):
    trace = json.loads((work / "made.trace").read_text(encoding="utf-8"))
    replace(work / "made.trace", "pieces", next(iter(trace["pieces"])), by="\n" * 50_000)


def huge_counts(work):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }"
    header += b" " * (117 - len(header)) + b"\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (work / "store" / "train-counts.npy").write_bytes(head)


def expanding(work):
    row = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * 3_000_000])
    parquet.write_table(pa.table({"text": row}), work / "bomb.parquet", compression="zstd")
    assert (work / "bomb.parquet").stat().st_size < 10_000


def link(work):
    (work / "run" / "metrics.jsonl").unlink()
    (work / "run" / "metrics.jsonl").symlink_to(work.parent / "victim" / "kept.txt")


TRAIN = ("train", "tiny.py", "--out", "run", "--network.depth", "1", "--network.width", "16")
TRAIN += ("--train.steps", "5")
STORE = ("train", "tiny.py", "--data.store", "store", "--out", "new")
SHARD = ("splits", "train", "shards", 0)
KINDS = {
    "checkpoint": (
        lambda work: replace(work / "run/checkpoints/4/data/metadata", "position", by=-(10**30)),
        TRAIN,
        "checkpoint of step 4 is damaged",
    ),
    "config": (
        lambda work: replace(work / "run/config.json", "checkpoints", by="../victim/x"),
        TRAIN,
        "give --checkpoints",
    ),
    "trace": (many_newlines, ("view", "made.trace"), "MDLM_MAX_PIECE"),
    "store": (
        lambda work: replace(work / "store/manifest.json", *SHARD, "name", by="../victim/x"),
        STORE,
        "is damaged",
    ),
    "store's checksum": (
        lambda work: replace(work / "store/manifest.json", *SHARD, "sha256", by="../../victim"),
        STORE,
        "is damaged",
    ),
    "counts": (
        huge_counts,
        (*STORE, "--process", "Masked(schedule=Spindle())", "--objective")
        + ("GeneralizedNelbo()", "--sampler", "Reverse(steps=2)"),
        "train-counts.npy",
    ),
    "tokenizer": (
        lambda work: replace(work / "run/data/special_tokens.json", "vocab", "mask_id", by=None),
        ("sample", "run"),
        "its tokenizer cannot be read",
    ),
    "template": (
        lambda work: None,
        ("sample", "run", "--infill", "a [MASK:99999999999999999999999]"),
        "a blank has 1 to",
    ),
    "weights": (
        lambda work: safetensors(work / "x.safetensors", "F8_E4M3"),
        ("import", "x.safetensors", "tiny.py", "--out", "new"),
        "is F8_E4M3",
    ),
    "text": (
        expanding,
        ("train", "tiny.py", "--data.source.train", "bomb.parquet", "--out", "new"),
        "MDLM_MAX_EXPANSION",
    ),
    "pipe": (
        lambda work: os.mkfifo(work / "pipe.txt"),
        ("train", "tiny.py", "--data.source.train", "pipe.txt", "--out", "new"),
        "a pipe or a device",
    ),
    "link": (link, TRAIN, "a symbolic link that leads out of run"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_is_refused(attempt, folder, kind):
    make, words, said = KINDS[kind]
    make(folder / "work")
    found = attempt(*words)
    assert found.code == 2 and said in found.err, found.err
    said = [line for line in found.err.splitlines() if not line.startswith("mdlm: changed")]
    assert len(said) == 1


@pytest.mark.slow
def test_a_line_without_end(attempt, folder, worker):
    (folder / "work" / "long.jsonl").write_text('{"text": "' + "x" * 5000, encoding="utf-8")
    words = ("train", "tiny.py", "--data.source.train", "long.jsonl", "--out", "new")
    found = attempt(*words, environment={"MDLM_MAX_DOCUMENT": "1000"})
    assert found.code == 2 and "MDLM_MAX_DOCUMENT=10010" in found.err, found.err


def test_the_document_names_each_kind():
    text = SECURITY.read_text(encoding="utf-8").lower()
    words = {word for kind in KINDS for word in re.findall(r"[a-z]+", kind) if len(word) > 1}
    assert not [word for word in words if word not in text]


def test_counts_are_read_if_they_are_sound(tmp_path):
    import io

    from mdlm.foreign.arrays import numbers

    buffer = io.BytesIO()
    np.save(buffer, np.array([3, 0, 7], np.int32))
    assert numbers(buffer.getvalue()).tolist() == [3, 0, 7]
    with pytest.raises(ValueError, match="promises"):
        numbers(buffer.getvalue()[:-1])
