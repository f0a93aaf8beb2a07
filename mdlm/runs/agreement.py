"""Whether a run folder fits an experiment, and whether all processes read the same folder."""

import shlex
import time

from etils import epath

from mdlm.cluster import process_group
from mdlm.config import records
from mdlm.config.components import classes_in
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.identity import identity, identity_of
from mdlm.runs.checkpoint_paths import located, newest_in
from mdlm.runs.folder import BEGINNING, RunFolder
from mdlm.runs.past import LOCK

PATIENCE = 10.0
"""Seconds to wait until a file that one process wrote on a shared disk is visible to all."""


def agreed(folder: RunFolder, experiment: Experiment) -> bool:
    """Returns whether the folder holds a run to resume, after `check` on process 0.

    Raises InputError, on all processes, if the folder does not fit the experiment, or if
    processes read different folders.
    """

    def decide() -> bool:
        check(folder, experiment)
        return folder.exists

    exists = process_group.broadcast(decide)
    if exists:
        check_shared(folder)
    return exists


def check_shared(folder: RunFolder) -> None:
    """Raises InputError, on all processes, if one of them does not read process 0's run."""
    until = time.monotonic() + PATIENCE
    while not folder.exists and time.monotonic() < until:  # a network disk may be slow to show it
        time.sleep(0.2)
    config = folder.path / "config.json"
    seen = config.read_text(encoding="utf-8") if folder.exists else None

    def judge(all_seen: list[str | None]) -> None:
        for number, one in enumerate(all_seen):
            if one != all_seen[0]:
                raise InputError(
                    f"process {number} does not see the run folder {folder.path} of process 0:"
                    " it must be on a disk that all processes share"
                )

    process_group.decide_together(seen, judge)


def check(folder: RunFolder, experiment: Experiment) -> None:
    """Raises InputError if the folder is not empty and does not hold a run of this experiment,
    or if the folder given by `--checkpoints` holds checkpoints of another run."""
    if not folder.exists:
        begun = (folder.path / BEGINNING).exists()  # an earlier start ended before config.json
        others = folder.path.exists() and {path.name for path in folder.path.iterdir()} - {LOCK}
        if others and not begun:
            raise InputError(
                f"{folder.path} exists and is not a run folder: choose a new or empty folder"
            )
    else:
        found = records.differences(folder.identity(experiment), identity(experiment))
        if found:
            raise InputError(
                f"{folder.path} holds a run of another configuration; {_few(found)}."
                " Choose another --out, give the values of the first start, or begin a run"
                f" from its state: --fork {shlex.quote(str(folder.path))} and another --out"
            )
    if folder.asked is not None:
        _check_asked(folder, folder.asked, experiment)
    elif folder.exists and folder.kept() != located(folder.path / "checkpoints"):
        _check_elsewhere(folder, folder.kept(), experiment)


def _check_elsewhere(folder: RunFolder, kept: epath.Path, experiment: Experiment) -> None:
    """Raises InputError if config.json, which may be somebody else's, names a folder to write
    to that has no checkpoint of this run."""
    there = newest_in(kept)
    if there is None:
        raise InputError(
            f"{folder.path}: config.json keeps the checkpoints in {kept}, which has none; if that"
            f" is right, give --checkpoints {shlex.quote(str(kept))}"
        )
    _check_asked(folder, kept, experiment)


def _check_asked(folder: RunFolder, asked: epath.Path, experiment: Experiment) -> None:
    """Raises InputError if `asked` holds checkpoints of another run, or is not where this run
    keeps its checkpoints.

    Checkpoints without a run folder are accepted: if the folder was lost with a machine, the
    run resumes from them.
    """
    there = newest_in(asked)
    if there is None:
        kept = folder.kept()
        if kept != asked and newest_in(kept) is not None:
            raise InputError(
                f"--checkpoints {asked}: the checkpoints of {folder.path} are in {kept}; move"
                " them first, or leave the option out"
            )
        return
    step, data = there
    if "run" not in data and folder.exists:
        return  # an older version did not record the run
    title = f"--checkpoints {asked}: the checkpoint of step {step}"
    there = identity_of(data.get("run", {}), title, classes_in(experiment))
    found = records.differences(there, identity(experiment))
    if found:
        raise InputError(
            f"--checkpoints {asked} holds a checkpoint, of step {step}, of another run;"
            f" {_few(found)}"
        )


def _few(found: list[str]) -> str:
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
