"""Files of a run folder that are replaced as a whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Context that yields a new file's path; the file takes the place of `path` at the end.

    A reader, or a crash, sees the old file or the new one.
    """
    new = path.with_name(f".{path.name}.new")
    yield new
    os.replace(new, path)
