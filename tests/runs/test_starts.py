"""What a run folder keeps of each start of its run."""

import json
from datetime import UTC, datetime

import pytest
import tiny

from mdlm.runs.folder import RunFolder


@pytest.fixture
def experiment(tmp_path):
    return tiny.experiment(tiny.write_text(tmp_path / "text.txt"))


def begin(tmp_path, experiment, source: str) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.begin(source, [], experiment)
    return folder


def test_each_start_is_added_with_its_date(tmp_path, experiment):
    before = datetime.now(UTC).replace(microsecond=0)
    for _ in range(3):
        folder = begin(tmp_path, experiment, "# one\n")
    dates = [datetime.fromisoformat(start["started"]) for start in folder.starts()]
    assert len(dates) == 3 and before <= dates[0] <= dates[1] <= dates[2] <= datetime.now(UTC)
    assert all(start["devices"] and start["packages"] for start in folder.starts())
    assert json.loads((folder.path / "env.json").read_text()) == folder.starts()


def test_the_first_experiment_file_stays_and_others_are_kept_beside_it(tmp_path, experiment):
    for source in ("# one\n", "# two\n", "# two\n", "# one\n"):
        folder = begin(tmp_path, experiment, source)
    assert (folder.path / "experiment.py").read_text() == "# one\n"
    first, second, third, fourth = (start["experiment"] for start in folder.starts())
    assert first == fourth == "experiment.py" and second == third != first
    assert (folder.path / second).read_text() == "# two\n"
    assert sorted(path.name for path in folder.path.glob("*.py")) == sorted({first, second})


def test_an_older_environment_is_kept_as_the_first_start(tmp_path, experiment):
    folder = begin(tmp_path, experiment, "# one\n")
    old = {"mdlm": "0.1.0", "python": "3.11.0", "devices": ["TPU_0"]}
    (folder.path / "env.json").write_text(json.dumps(old))
    (folder.path / "digests.json").unlink()  # as in an older version
    assert folder.starts() == [old]
    folder = begin(tmp_path, experiment, "# one\n")
    first, second = folder.starts()
    assert first == old and "started" in second


def test_a_start_that_never_became_a_run_is_replaced(tmp_path, experiment):
    folder = begin(tmp_path, experiment, "# one\n")
    (folder.path / "config.json").unlink()
    folder = begin(tmp_path, experiment, "# two\n")
    assert (folder.path / "experiment.py").read_text() == "# two\n" and len(folder.starts()) == 1
