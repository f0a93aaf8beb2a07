"""The folder that every hostile case is tried on a copy of, and the process that tries it."""

import hostile
import pytest


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return hostile.made(tmp_path_factory.mktemp("hostile") / "made")


@pytest.fixture(scope="session")
def worker():
    worker = hostile.Worker()
    yield worker
    print(f"{worker.attempts} attempts")
    worker.close()


@pytest.fixture
def folder(made, tmp_path):
    """A folder with a working folder, and a victim beside it that must not change."""
    return hostile.prepared(made, tmp_path)


@pytest.fixture
def attempt(worker, folder):
    """Tries a command in the working folder."""
    return lambda *words, **more: worker.attempt(list(words), folder, **more)
