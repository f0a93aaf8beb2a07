"""Reads the JSON files of a run folder, which may be damaged, or not of this program."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from etils import epath

from mdlm.errors import InputError
from mdlm.foreign.typed_json import converted, decoded


def json_of(path: Path | epath.Path, kind: Any) -> Any:
    """Returns the value in a JSON file, which must be of this type.

    Raises InputError if it cannot be read.
    """
    try:
        return decoded(path.read_bytes(), kind)
    except ValueError as error:
        raise InputError(
            f"{path}: damaged, or not a file of mdlm ({error}); restore it from a copy, or name a"
            " run folder"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


class Config(TypedDict):
    """What config.json holds. Only the experiment must be there."""

    experiment: dict[str, Any]
    overrides: NotRequired[list[tuple[str, str]]]
    checkpoints: NotRequired[str | None]
    fingerprint: NotRequired[str | None]


class Start(TypedDict, total=False):
    """What is used of a start of a run; other values are for readers."""

    started: str
    experiment: str | None
    file: str | None
    folder: str | None
    mdlm: str


def config_of(path: Path) -> dict[str, Any]:
    """Returns the contents of a config.json.

    Raises InputError if it is damaged, or of another program.
    """
    found = json_of(path, Config)
    return {"overrides": [], "checkpoints": None, "fingerprint": None, **found}


def starts_of(path: Path) -> list[dict[str, Any]]:
    """Returns the starts of a run, oldest first, from its env.json; none if there is no such file.

    Raises InputError if it is damaged.
    """
    found: Any = json_of(path, list[dict[str, Any]] | dict[str, Any]) if path.is_file() else []
    starts = [found] if isinstance(found, dict) else found  # version 0.1 kept only the last one
    for start in starts:
        try:
            converted(start, Start)
        except ValueError as error:
            raise InputError(f"{path}: damaged ({error}); restore it from a copy") from error
    return starts
