"""One writer of a run folder, and no new beginning where a run has a past."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from mdlm.errors import InputError
from mdlm.files import Lock, check_contained, replaced
from mdlm.runs.digests import sealed
from mdlm.runs.log import Log
from mdlm.runs.reading import json_of

LOCK = ".lock"
"""Name of a file that the process that trains the run has locked."""
SAVED = ".saved"
"""Name of a file that says that a checkpoint of the run was completed."""


TEXTS = "texts.json"
"""Name of a file, beside the tokenizer, with a checksum of the text of each split."""


def check_texts(folder: Path, found: Mapping[str, str]) -> None:
    """Raises InputError if a text is another than at an earlier start of the run.

    `found` has the checksums of texts by name. Names that are new are not compared.
    """
    for name, known in _texts(folder).items():
        if found.get(name, known) != known:
            raise InputError(
                f"{folder.parent}: the text of {name} is another than when the run began: restore"
                f" it, or begin a run from its state: --fork {shlex.quote(str(folder.parent))} and"
                " another --out"
            )


def keep_texts(folder: Path, found: Mapping[str, str]) -> None:
    """Keeps the checksums of texts in the run's folder of data."""
    known = {**_texts(folder), **found}
    with sealed(folder.parent, f"{folder.name}/{TEXTS}"), replaced(folder / TEXTS) as new:
        new.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _texts(folder: Path) -> dict[str, str]:
    path = folder / TEXTS
    return json_of(path, dict[str, str]) if path.is_file() else {}


def hold(folder: Path) -> Lock:
    """Locks a run folder for training, until the result is closed.

    Raises InputError if another process trains the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_contained(folder)
    return Lock(folder / LOCK, "being trained")


def note_saved(folder: Path) -> None:
    """Notes that a checkpoint of the run is complete: from now on it has a past."""
    (folder / SAVED).touch()


def check_past(folder: Path, checkpoints: object, log: Log, *, restart: bool) -> None:
    """Raises InputError if the run, which has no checkpoint in `checkpoints`, has saved some.

    With `restart`, its log is moved aside instead, and the run begins again.
    """
    if not (folder / SAVED).exists():
        return
    if not restart:
        raise InputError(
            f"{folder}: the run has saved checkpoints, and {checkpoints} has none: mount or restore"
            " that folder, or give --restart to train from step 0 (the log is moved aside)"
        )
    log.set_aside()
    (folder / SAVED).unlink()
