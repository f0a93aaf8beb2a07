"""Data whose paths are relative, used from another folder than the one where they were named."""

import dataclasses
import glob
import os
from pathlib import Path
from typing import Any

from mdlm.data.mixture import Mixture


def placed(data: Any, folder: Path) -> Any:
    """Returns the data of an experiment with paths that can be read from here.

    A relative path that leads to nothing here, and to something from `folder`, is taken from there.
    """
    if isinstance(data, Mixture):
        return dataclasses.replace(data, parts=tuple(placed(part, folder) for part in data.parts))
    source, store = data.source, data.store
    given = {name: getattr(source, name) for name in source.paths}
    found = {name: _placed(value, folder) for name, value in given.items()}
    source = dataclasses.replace(source, **found) if found != given else source
    return dataclasses.replace(data, source=source, store=_placed(store, folder))


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, tuple):
        return tuple(_placed(one, folder) for one in value)
    if not isinstance(value, str) or "://" in value or _leads(value):
        return value
    there = os.path.join(folder, value)  # an absolute path stays
    return there if _leads(there) else value


def _leads(path: str) -> bool:
    path = os.path.expanduser(path)
    return os.path.exists(path) or bool(glob.glob(path, recursive=True))
