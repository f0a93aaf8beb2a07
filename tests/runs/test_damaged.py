"""Run folders with files that are damaged, of another version, or of another program: one line."""

import json

import pytest
import tiny

import mdlm
from mdlm.errors import InputError
from mdlm.runs import digests
from mdlm.runs.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    """A run that was begun."""
    folder = RunFolder(tmp_path / "run")
    experiment = tiny.experiment(tiny.write_text(tmp_path / "text.txt"))
    folder.begin("# the file\n", [], experiment)
    experiment.data.load(folder.data)
    (folder.path / digests.NAME).unlink()  # as of an older version, which are not compared
    return folder


def changed(folder, **values) -> str:
    return json.dumps({**folder.config(), **values})


FILES = {
    "of another program": lambda f: json.dumps({"model_type": "bert", "hidden_size": 768}),
    "a list": lambda f: "[1, 2]",
    "empty": lambda f: "",
    "cut": lambda f: changed(f)[:40],
    "not text": lambda f: "\udcff\udcfe",
    "other overrides": lambda f: changed(f, overrides=[["a", 3]]),
    "other checkpoints": lambda f: changed(f, checkpoints=7),
    "an experiment of text": lambda f: changed(f, experiment="DiT()"),
    "a number for a text": lambda f: changed(f, experiment={"name": 3}),
    "a field unknown": lambda f: changed(f, experiment={"glow": "3"}),
    "fields missing": lambda f: changed(f, experiment={"name": "'a'"}),
}


@pytest.mark.parametrize("case", FILES)
def test_a_config_that_is_not_ours_is_one_line(folder, case):
    path = folder.path / "config.json"
    path.write_text(FILES[case](folder), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match="config.json: ") as caught:
        mdlm.load(folder.path)
    assert "\n" not in str(caught.value)


def test_a_run_of_another_version_says_which(folder):
    (folder.path / "config.json").write_text(changed(folder, experiment={"glow": "3"}))
    starts = [{**start, "mdlm": "9.0.0"} for start in folder.starts()]
    (folder.path / "env.json").write_text(json.dumps(starts))
    with pytest.raises(InputError, match="no glow. The run is of mdlm 9.0.0, this is .*version"):
        folder.experiment()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("env.json", lambda folder: folder.starts()),
        ("metrics.jsonl", lambda folder: folder.log.metrics()),
        ("data/token_counts.npy", lambda folder: folder.counts()),
        ("data/tokenizer.json", lambda folder: folder.experiment().data.load(folder.data)),
    ],
)
@pytest.mark.parametrize("content", [b"garbage\n", b"\xff\xfe\n", b"3\n", b"\n"])
def test_other_damaged_files_are_one_line(folder, name, read, content):
    (folder.path / name).write_bytes(content)
    with pytest.raises(InputError, match="damaged|not a file of mdlm|cannot be read") as caught:
        read(folder)
    assert "\n" not in str(caught.value) and str(folder.path) in str(caught.value)


def test_samples_with_lines_of_others_are_kept(folder):
    folder.log.samples_file.write_bytes(b"a note, \xff\n")
    for step in (1, 2):
        folder.log.add_samples(step, ["text"])
    folder.log.rewind(1)
    assert folder.log.samples_file.read_bytes().startswith(b"a note, \xff\n=== step 1")
    assert b"step 2" not in folder.log.samples_file.read_bytes()
