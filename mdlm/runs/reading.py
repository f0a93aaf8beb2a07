"""Reads the JSON files of a run folder, which may be damaged, or not of this program."""

import json
from pathlib import Path
from typing import Any

from mdlm.errors import InputError


def json_of(path: Path, *kinds: type) -> Any:
    """Returns the value in a JSON file, which must be of one of these types.

    Raises InputError if it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # neither JSON nor UTF-8, or not permitted
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: damaged, or not a file of mdlm ({reason}); restore it from a copy"
        ) from error
    if not isinstance(found, kinds):
        raise InputError(
            f"{path}: a {type(found).__name__}, so it is not a file of mdlm; name a run folder"
        )
    return found


CONFIG: dict[str, tuple[type, ...]] = {
    "experiment": (dict,),
    "overrides": (list,),
    "checkpoints": (str, type(None)),
    "fingerprint": (str, type(None)),
}
"""What config.json holds, and the types of its values. Only the experiment must be there."""


def config_of(path: Path) -> dict[str, Any]:
    """Returns the contents of a config.json.

    Raises InputError if it is damaged, or of another program.
    """
    found = json_of(path, dict)
    given = {name: found.get(name, [] if name == "overrides" else None) for name in CONFIG}
    wrong = [name for name, kinds in CONFIG.items() if not isinstance(given[name], kinds)]
    pairs = given["overrides"] if not wrong else []
    if wrong or not all(isinstance(p, list) and list(map(type, p)) == [str, str] for p in pairs):
        raise InputError(
            f"{path}: not of a run of mdlm ({' and '.join(wrong or ['overrides'])} missing or of"
            " another form); name a run folder, made by `mdlm train` or `mdlm import`"
        )
    return {**found, **given}


def starts_of(path: Path) -> list[dict[str, Any]]:
    """Returns the starts of a run, oldest first, from its env.json; none if there is no such file.

    Raises InputError if it is damaged.
    """
    found: Any = json_of(path, list, dict) if path.is_file() else []
    if isinstance(found, dict):  # version 0.1 kept only the last start, without a date
        return [found]
    return [start for start in found if isinstance(start, dict)]
