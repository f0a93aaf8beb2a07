"""The folder that every hostile case is tried on a copy of."""

import hostile
import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    import os, pathlib

    if os.environ.get("MADE"):
        return pathlib.Path(os.environ["MADE"])
    return hostile.made(tmp_path_factory.mktemp("hostile") / "made")


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A folder with a working folder, and a victim beside it that must not change."""
    hostile.computes_nothing(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return hostile.prepared(made, tmp_path)
