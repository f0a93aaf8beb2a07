"""A run that goes on with another number of hosts: the benchmark's own comparison, and that it
sees what differs."""

from unittest import mock

import pytest
import tiny

from benchmarks import hosts
from mdlm.data.loader import TrainLoader
from mdlm.data.preparation.prepare import Prepared, prepare

pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path):
    """What the command is given: a tiny experiment on a store that `prepare` made."""
    text = tiny.write_text(tmp_path / "text.txt")
    data = tiny.experiment(text).data
    store = str(tmp_path / "store")
    *_, done = prepare(data, store, workers=1, shard_tokens=5000)
    assert isinstance(done, Prepared) and len(done.manifest.splits["train"].shards) > 2
    file = tmp_path / "tiny_experiment.py"
    file.write_text(tiny.FILE.format(text=str(text)))
    steps = "--steps 12 --stop 5 --batch 24 --train.eval_rows 16".split()
    return [str(file), *steps, "--data.store", store]


def test_batches_and_parameters_are_as_with_one_host(words, capsys):
    hosts.run(words)
    out = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [row[1] for row in rows[1:]] == ["2", "3"]
    assert sum(int(row[2]) for row in rows[1:]) == 12
    assert all(row[2] == row[3] for row in rows[1:])
    assert "parameters after step 12" in out


def test_a_part_that_is_another_is_noticed(words, capsys):
    whole = TrainLoader.indices_at

    def shifted(self, position):
        """One of the three hosts is a row ahead."""
        return whole(self, position + (self.part == slice(16, 24)))

    with mock.patch.object(TrainLoader, "indices_at", shifted), pytest.raises(SystemExit):
        hosts.run(words)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | " in line]
    assert [row[3] for row in rows[1:]] == ["6", "0"]
