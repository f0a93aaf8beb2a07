"""The benchmark of loading, at a size that takes no time."""

import json

import numpy as np

from benchmarks import loading
from mdlm.data.packing import Wrap
from mdlm.data.store.reader import Store
from mdlm.types import Vocab


def test_the_table_without_the_step(tmp_path, capsys):
    words = "--tokens 20000 --length 32 --batch 8 --no-step --rounds 2 --seconds 0.01"
    loading.run([*words.split(), "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    rows = {row["case"]: row for row in written["rows"]}
    assert set(rows) == {"mdlm", "mdlm, on the device", "datasets"}
    for name, row in rows.items():
        assert np.isclose(row["tokens/s"], 8 * 32 / (row["ms/batch"] / 1e3))
        assert row["x datasets"] > 0 and f"\n{name} " in printed
    assert rows["datasets"]["x datasets"] == 1 and written["store"] == "made up"
    assert written["tokens"] == 20000 // 30 * 32


def test_the_store_made_up_is_one(tmp_path):
    vocab = Vocab(size=64, mask_id=63, bos_id=62, eos_id=61)
    loading.made_up(tmp_path, 5500, vocab)
    stream = Store.open(str(tmp_path)).stream("train")
    assert stream.total == 5500 and stream.documents == 5
    rows = Wrap(length=50, row_specials=False, remainder="drop").over(stream, vocab)
    tokens = np.concatenate([some.tokens for some in rows.chunks()]).ravel()
    assert (np.flatnonzero(tokens == 61) == np.arange(999, 5500, 1000)).all()
    assert tokens.max() == 61 and tokens.min() == 0
    # The other reader gives the rows of the same tokens.
    read = loading.other_reader(rows, tmp_path / "arrow", 8)
    known = {row.tobytes() for row in tokens.reshape(-1, 50).astype(np.int32)}
    assert all(row.tobytes() in known for row in read())
