"""Where checkpoints are: folders of this machine, or elsewhere by URL, and what lies in them.

Looked at without orbax, which has all processes of a run look together.
"""

import json
import os
from typing import Any

from etils import epath

from mdlm.errors import InputError

OPENED_BY = {"gs": "gcsfs", "s3": "s3fs"}
"""Kinds of URL that orbax writes arrays to, and the package that the rest is written by."""


def located(where: str | os.PathLike[str]) -> epath.Path:
    """A folder of this machine, made absolute, or one elsewhere by its URL (`gs://...`).

    InputError where it is of a kind on which there can be no checkpoints.
    """
    scheme, mark, _ = str(where).partition("://")
    if not mark:
        return epath.Path(where).absolute()
    if scheme not in OPENED_BY:
        kinds = " and ".join(f"{kind}://" for kind in OPENED_BY)
        raise InputError(f"{where}: checkpoints are kept in a folder, or on {kinds}")
    return epath.Path(where)


def newest_in(folder: epath.Path) -> tuple[int, dict[str, Any]] | None:
    """The step of the newest checkpoint there, and what was saved as its data.

    InputError where the folder cannot be reached.
    """
    reach(folder)
    for step in reversed(steps_in(folder)):
        try:
            return step, json.loads((folder / str(step) / "data" / "metadata").read_text())
        except FileNotFoundError:
            continue  # not yet whole, or no longer
        except ValueError:
            return step, {}
    return None


def steps_in(folder: epath.Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def reach(folder: epath.Path) -> None:
    """InputError where nothing that is installed opens the folder."""
    name = str(folder)
    scheme, mark, _ = name.partition("://")
    if not mark:
        return
    try:
        folder.exists()
    except ImportError as error:
        needed = OPENED_BY[scheme]
        raise InputError(
            f"{name}: this needs the package {needed} (pip install {needed})"
        ) from error
    except Exception as error:  # no such bucket, no permission, no network: each says it its way
        raise InputError(f"{name}: cannot be reached ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """What lies at the bottom of an exception, in short."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    text = str(error).split("\n")[0].split(" [")[0]
    return text if len(text) <= 120 else text[:117] + "..."
