"""A copy of a checkpoint as the first of another run."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

from etils import epath

from mdlm.runs import digests
from mdlm.runs.checkpoint_paths import Progress
from mdlm.runs.checkpoints import STAMPED
from mdlm.runs.reading import json_of


def copy_checkpoint(
    source: epath.Path, target: epath.Path, step: int, run: Mapping[str, str]
) -> None:
    """Copies the checkpoint of `step` from one folder of checkpoints to another.

    `run` is the identity of the new run, which the copy records. The copy is complete, or orbax
    takes it for the remains of a save. Its validation results and its time stay behind: the best
    checkpoint of a run is one of its own.
    """
    copy = target / f"{step}.orbax-checkpoint-tmp-fork"
    if copy.exists():
        copy.rmtree()
    _copy(source / str(step), copy)
    data = copy / "data" / "metadata"
    values = json_of(data, dict[str, Any])
    values = {name: value for name, value in values.items() if name not in Progress.__annotations__}
    data.write_text(json.dumps({**values, "run": dict(run), "rewinds": 0}), encoding="utf-8")
    metrics = copy / "metrics" / "metrics"
    if metrics.exists():
        metrics.write_text("{}", encoding="utf-8")
    digests.write(copy, leave_out=STAMPED)
    copy.rename(target / str(step))


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copies a folder, from and to any storage."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
            continue
        with path.open("rb") as old, (target / path.name).open("wb") as new:
            shutil.copyfileobj(old, new, 2**24)
