"""Folders of checkpoints, on this machine or by URL, and the steps in them.

They are read without orbax, which would need all processes of a run to read together.
"""

import os
from typing import Any, NotRequired, TypedDict

from etils import epath

from mdlm.errors import InputError
from mdlm.foreign.typed_json import Count, decoded

OPENED_BY = {"gs": "gcsfs", "s3": "s3fs"}
"""URL schemes that orbax writes arrays to, and the package that writes the other files."""


class Owned(TypedDict):
    """What is saved with every checkpoint: the identity of its run, by older versions not."""

    run: NotRequired[dict[str, Any]]


class Validations(TypedDict):
    """How many validations in a row were no better than the best one before, by a metric."""

    by: str
    in_a_row: Count
    step: NotRequired[Count]
    value: NotRequired[float]


class Progress(TypedDict):
    """What decides whether a run ends before its last step (`mdlm.train.stopping`)."""

    validations: NotRequired[Validations]
    seconds: NotRequired[float]
    is_over: NotRequired[bool]


class Data(Owned, Progress):
    """What is saved beside the state: the position in the data, what the guard and `Stopping`
    remember."""

    position: Count
    rewinds: NotRequired[Count]
    losses: NotRequired[list[float]]


def located(where: str | os.PathLike[str]) -> epath.Path:
    """Returns the absolute path of a folder of this machine, or a URL (`gs://...`) as it is.

    Raises InputError if checkpoints cannot be kept under URLs of this scheme, or if the name is not
    UTF-8, which the libraries that write there need.
    """
    try:
        str(where).encode()
    except UnicodeEncodeError as error:
        shown = str(where).encode(errors="replace").decode()
        raise InputError(
            f"{shown}: this name is not UTF-8 here: choose another, or set PYTHONUTF8=1"
        ) from error
    scheme, mark, _ = str(where).partition("://")
    if not mark:
        return epath.Path(where).absolute()
    if scheme not in OPENED_BY:
        kinds = " and ".join(f"{kind}://" for kind in OPENED_BY)
        raise InputError(f"{where}: checkpoints are kept in a folder, or on {kinds}")
    return epath.Path(where)


def newest_in(folder: epath.Path) -> tuple[int, Owned] | None:
    """Returns the step of the newest checkpoint of a folder, and what was saved as its data.

    Raises InputError if the folder cannot be reached.
    """
    reach(folder)
    for step in reversed(steps_in(folder)):
        try:
            content = (folder / str(step) / "data" / "metadata").read_bytes()
            return step, decoded(content, Owned)
        except FileNotFoundError:
            continue  # being written, or being deleted
        except ValueError:
            return step, {}
    return None


def steps_in(folder: epath.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, ascending."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def reach(folder: epath.Path) -> None:
    """Raises InputError if the folder cannot be opened, or needs a package not installed."""
    name = str(folder)
    scheme, mark, _ = name.partition("://")
    if not mark:
        return
    try:
        folder.exists()
    except ImportError as error:
        needed = OPENED_BY[scheme]
        raise InputError(f"{name}: needs the package {needed}: pip install {needed}") from error
    except Exception as error:  # no bucket, permission or network: each raises its own kind
        raise InputError(f"{name}: cannot be reached ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's root cause, in at most 120 characters."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    text = str(error).split("\n")[0].split(" [")[0]
    return text if len(text) <= 120 else text[:117] + "..."
