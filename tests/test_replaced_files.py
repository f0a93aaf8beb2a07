"""Files that are replaced as a whole, and the cache folder."""

import os
import stat

import pytest

from mdlm.data import Bytes
from mdlm.files import cache_folder, replaced


def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("old")
    with replaced(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(OSError), replaced(path) as new:
        new.write_text("half")
        raise OSError
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_keep_the_permissions_that_the_umask_leaves(tmp_path, mask):
    old = os.umask(mask)
    try:
        with replaced(tmp_path / "one.txt") as new:
            new.write_text("new")
        Bytes().build([]).save(tmp_path)
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 3 and modes == {0o666 & ~mask}


def test_the_cache_is_where_it_was_named_or_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder("jax") == tmp_path / "mdlm" / "jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_folder("jax")) == "/home/someone/.cache/mdlm/jax"


def test_without_a_home_folder_there_is_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where no user has this id
    assert cache_folder("jax") is None
