"""Files that are replaced as a whole, locks, and the folder for what may be made again."""

import contextlib
import fcntl
import math
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mdlm.errors import InputError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Context that yields a new file's path; the file takes the place of `path` at the end.

    A reader, or a crash, sees the old file or the new one. The file is made by its writer, with the
    permissions that the umask leaves. After an error nothing is left of it; one of the disk names
    `path`.
    """
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        yield new
        os.replace(new, path)
    except OSError as error:
        raise _of(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Writes a whole file, in place of the old one. Raises OSError, which names the file.

    A link keeps leading where it leads, and what is no file, such as a pipe, is written to.
    """
    data, path = content.encode() if isinstance(content, str) else content, path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with replaced(path) as new:
        new.write_bytes(data)


def append(path: Path, content: bytes) -> None:
    """Adds to the end of a file: all of it or, with an OSError that names the file, nothing."""
    try:
        with open(path, "ab", buffering=0) as file:
            before, left = file.tell(), memoryview(content)
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise _of(path, error) from error


def _of(path: Path, error: OSError) -> OSError:
    """Returns an error of the disk with the name of the file that it is about."""
    number = error.errno or 0
    return OSError(number, error.strerror or str(error), str(path))


def finite(value: Any) -> Any:
    """Returns JSON values with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_contained(folder: Path) -> None:
    """Raises InputError if a symbolic link in a folder, which may be a copy of somebody else's,
    leads out of it: then what is written inside would go elsewhere."""
    home = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise InputError(
                f"{path}: a symbolic link that leads out of {folder}, to {path.resolve()}: replace"
                " it by what it leads to, or remove it"
            )


class Lock:
    """A lock on a file against other processes, until `close`, or until this process ends.

    The file says who holds it. Raises InputError, with that and the `task` ("being trained"), if
    another process holds it. On a disk without locks nothing is locked.
    """

    def __init__(self, path: Path, task: str):
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 200).decode(errors="replace")
            self.close()
            raise InputError(
                f"{path.parent}: is {task} by another process ({holder}): wait until it ends"
            ) from error
        except OSError:
            return
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(self._file, 0)
        words = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
        os.write(self._file, words.encode())

    def close(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def cache_folder(name: str) -> Path | None:
    """Returns a folder of this package for files that may be made again, None if there is no place.

    It lies in XDG_CACHE_HOME, else in `.cache` of the home folder, which a user may lack.
    """
    home = os.path.expanduser("~")  # unlike Path.home(), no error without a home
    chosen = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home != "~" else None)
    return Path(chosen) / "mdlm" / name if chosen else None
