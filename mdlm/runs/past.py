"""One writer of a run folder, and no new beginning where a run has a past."""

from pathlib import Path

from mdlm.errors import InputError
from mdlm.files import Lock
from mdlm.runs.log import Log

LOCK = ".lock"
"""Name of a file that the process that trains the run has locked."""
SAVED = ".saved"
"""Name of a file that says that a checkpoint of the run was completed."""


def hold(folder: Path) -> Lock:
    """Locks a run folder for training, until the result is closed.

    Raises InputError if another process trains the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
