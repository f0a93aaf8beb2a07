"""What is held out and what is left are the documents given: none vanishes, empty ones neither."""

import json
from itertools import product

import numpy as np
import pytest

from mdlm.data import Bytes, TextData, TextFiles, Wrap
from mdlm.data.preparation.prepare import prepare
from mdlm.data.text.splits import hold_out


def texts(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 0, 1, 7, 400, 3000], n)
    words = ["".join(rng.choice(list("ab cd\n"), size)) for size in lengths]
    return words if any(words) else [*words[1:], "a text\n" * 9]


@pytest.mark.parametrize(("n", "seed"), list(product([1, 2, 3, 8, 19, 20, 40], range(8))))
@pytest.mark.parametrize("fractions", [(0.05, 0.05), (0.3, 0.0), (0.0, 0.5), (0.4, 0.4)])
def test_every_document_is_in_one_part(n, seed, fractions):
    documents = texts(n, seed)
    parts = [part for part in hold_out(documents, *fractions) if part]
    # At most one document is in two parts, at each border between parts.
    joined = parts[0]
    for before, part in zip(parts, parts[1:], strict=False):
        done = len(joined)
        is_cut = joined[-1] != documents[done - 1]
        assert before
        joined = [*joined[:-1], joined[-1] + part[0], *part[1:]] if is_cut else [*joined, *part]
    assert joined == documents


def test_as_many_documents_are_counted_as_are_given(tmp_path):
    documents = ["", "one two\n" * 40, "", "", "three\n" * 60, "", "four five\n" * 30, ""]
    lines = (json.dumps({"text": text}) + "\n" for text in documents)
    (tmp_path / "t.jsonl").write_text("".join(lines))
    source = TextFiles(train=str(tmp_path / "t.jsonl"), valid_fraction=0.2, test_fraction=0.2)
    found = [text for split in source.splits for text in source.documents(split)]
    assert sum(not text for text in found) == 5 and "".join(found) == "".join(documents)
    packing = Wrap(length=16, row_specials=False)
    data = TextData(source=source, tokenizer=Bytes(), packing=packing)
    *_, made = prepare(data, str(tmp_path / "store"), workers=1)
    records = made.manifest.splits.values()
    assert sum(record.total("empty") for record in records) == 5
    assert sum(record.total("documents") for record in records) == len(found)
