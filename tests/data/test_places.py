"""Relative paths of data that are used from another folder."""

import dataclasses

import pytest
import tiny

from mdlm.data import Mixture, TextFiles
from mdlm.data.places import placed


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with texts; another one is the working folder."""
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "a.txt").write_text("a")
    (tmp_path / "there" / "v[1]").mkdir()
    (tmp_path / "there" / "v[1]" / "b.txt").write_text("b")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "there"


def test_a_relative_path_is_taken_from_the_folder_of_the_start(there, tmp_path):
    source = TextFiles(train=("a.txt", "*.txt"), valid="v[1]/b.txt", test="gone.txt")
    data = dataclasses.replace(tiny.experiment("a.txt").data, source=source)
    found = placed(data, there).source
    assert found.train == (str(there / "a.txt"), str(there / "*.txt"))
    assert found.valid == str(there / "v[1]" / "b.txt") and found.test == "gone.txt"
    mixed = placed(Mixture(parts=(data, data), weights=(1.0, 1.0)), there)
    assert [part.source for part in mixed.parts] == [found, found]


def test_a_path_that_leads_somewhere_stays(there, tmp_path):
    (tmp_path / "here" / "a.txt").write_text("mine")
    data = tiny.experiment("a.txt").data
    assert placed(data, there) == data
    data = tiny.experiment(there / "a.txt").data
    assert placed(data, tmp_path / "here") == data
