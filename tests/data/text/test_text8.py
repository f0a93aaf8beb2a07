"""The file text8: its size, its characters, its splits."""

import zipfile

import numpy as np
import pytest

from mdlm.data.text import text8
from mdlm.data.text.text8 import Text8File
from mdlm.errors import InputError


def test_the_published_split(tmp_path):
    """At the real size; the letters around the cuts show their positions."""
    data = np.frombuffer(b"abc defgh ", np.uint8)
    whole = np.tile(data, 10_000_000)
    whole[[0, 90_000_000, 95_000_000]] = list(b"xyz")
    whole[[89_999_999, 94_999_999, 99_999_999]] = list(b"pqr")
    whole.tofile(tmp_path / "text8")
    source = Text8File(path=str(tmp_path / "text8"))
    assert source.splits == ("train", "valid", "test")
    for split, size, ends in (
        ("train", 90_000_000, "xp"),
        ("valid", 5_000_000, "yq"),
        ("test", 5_000_000, "zr"),
    ):
        [text] = source.documents(split)
        assert len(text) == size and text[0] + text[-1] == ends


def test_invalid_text8(tmp_path, monkeypatch):
    monkeypatch.setattr(text8, "SIZES", {"train": 18, "valid": 1, "test": 1})
    file = tmp_path / "text8"
    source = Text8File(path=str(file))
    with pytest.raises(InputError, match="text8 cannot be read: No such file"):
        source.documents("train")
    file.write_bytes(b"abc defgh " * 2)
    assert source.documents("valid") == ["h"] and source.documents("test") == [" "]
    file.write_bytes(b"abc defgh " * 2 + b"\n")
    with pytest.raises(InputError, match="text8 has 21 bytes, text8 has 20"):
        source.documents("train")
    file.write_bytes(b"abc defgh abC defgh ")
    with pytest.raises(InputError, match="'C' at byte 12 is neither a to z nor a space"):
        source.documents("test")


def test_zipped(tmp_path, monkeypatch):
    monkeypatch.setattr(text8, "SIZES", {"train": 8, "valid": 1, "test": 1})
    path = tmp_path / "text8.zip"
    source = Text8File(path=str(path))
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="text8.zip cannot be unpacked"):
        source.documents("train")
    for name, message in (("other", "cannot be unpacked: .*text8"), ("text8", None)):
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr(name, "abc defgh ")
        if message:
            with pytest.raises(InputError, match=message):
                source.documents("train")
    assert source.documents("train") == ["abc defg"]
