"""Files that are replaced as a whole, and the folder for what may be made again."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Context that yields a new file's path; the file takes the place of `path` at the end.

    A reader, or a crash, sees the old file or the new one. The file is made by its writer, with the
    permissions that the umask leaves. After an error nothing is left of it.
    """
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def cache_folder(name: str) -> Path | None:
    """Returns a folder of this package for files that may be made again, None if there is no place.

    It lies in XDG_CACHE_HOME, else in `.cache` of the home folder, which a user may lack.
    """
    home = os.path.expanduser("~")  # unlike Path.home(), no error without a home
    chosen = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home != "~" else None)
    return Path(chosen) / "mdlm" / name if chosen else None
