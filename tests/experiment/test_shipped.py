"""Experiments by name."""

from pathlib import Path

import pytest

from mdlm.errors import InputError
from mdlm.experiment import load_file
from mdlm.experiment.shipped import located, names, summary

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_every_experiment_has_a_name_and_a_line():
    assert len(names()) == len(list(EXPERIMENTS.rglob("*.py")))
    assert {"quickstart", "owt_small", "family/gidd", "family/books/ar"} <= set(names())
    assert all(len(summary(name)) > 20 for name in names())


def test_a_name_is_its_file():
    assert located("family/gidd").read_text() == (EXPERIMENTS / "family/gidd.py").read_text()
    assert load_file("family/gidd").name == "gidd"


def test_an_existing_file_has_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("mine")
    assert located("quickstart").read_text() == "mine"
    assert located(tmp_path / "quickstart") == tmp_path / "quickstart"
    (tmp_path / "text8").mkdir()  # a folder is no experiment
    assert located("text8").read_text().startswith('"""MDLM on text8')


def test_summaries_are_read_without_execution(tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text('"""What it is.\n\nMore."""\n\nraise SystemExit(9)\n')
    (tmp_path / "silent.py").write_text("x = 1\n")
    monkeypatch.setattr("mdlm.experiment.shipped.folder", lambda: tmp_path)
    assert names() == ["bad", "silent"]
    assert [summary(name) for name in names()] == ["What it is.", ""]


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("quikstart", "quickstart"),
        ("experiments/owt_smal.py", "owt_small"),
        ("gidd", "family/gidd"),
        ("family/gid", "family/gidd"),
        ("bd3lm.py", "family/bd3lm"),
    ],
)
def test_the_nearest_name_is_said(text, near):
    with pytest.raises(InputError, match=rf"^{text}: no such file, .* nearest name is {near}; "):
        located(text)


def test_no_name_is_said_where_none_is_near():
    with pytest.raises(InputError) as error:
        located("zzzzzz")
    assert "nearest" not in str(error.value) and "mdlm experiments" in str(error.value)
