"""The EMA parameters of a run, from a checkpoint or from its weights."""

from collections.abc import Mapping
from typing import Any

from mdlm.errors import InputError
from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.finite import check_finite
from mdlm.runs.folder import RunFolder
from mdlm.runs.weights import Weights
from mdlm.types import ArrayTree


def restore_parameters(
    folder: RunFolder,
    abstract: Mapping[str, ArrayTree],
    step: int | None = None,
    *,
    some: bool = False,
) -> tuple[int, dict[str, Any]]:
    """Returns the step of a run and its EMA parameters, with the shardings of `abstract`.

    They come from the newest checkpoint, or from the weights if no checkpoint is newer; `step`
    selects a checkpoint. From a checkpoint they have the dtypes of `abstract`, from weights those
    of the file. With `some`, components that the run does not have are left out. Raises InputError
    if there are no parameters, if they are not finite, or if their names or shapes are not those of
    `abstract`.
    """
    found, parameters = _restored(folder, abstract, step, some)
    check_finite(parameters, f"{folder.path}, step {found}")
    return found, parameters


def _restored(
    folder: RunFolder, abstract: Mapping[str, ArrayTree], step: int | None, some: bool
) -> tuple[int, dict[str, Any]]:
    weights = Weights.of(folder.path, verify=folder.verify)
    verify = folder.verify
    with Checkpoints(folder.checkpoints, read_only=True, verify=verify) as checkpoints:
        newest = checkpoints.latest
        if weights is not None and (newest is None or newest <= weights.step):
            if step is None:
                return weights.step, weights.restore(abstract, some=some)
            if newest is None:
                raise InputError(
                    f"step {step}: {folder.path} has weights (of step {weights.step}) and no"
                    " checkpoints; leave the step out"
                )
        if some:
            abstract = {k: v for k, v in abstract.items() if checkpoints.has("ema", k)}
        ema = checkpoints.restore_part({"ema": abstract}, step)["ema"]
        found = newest if step is None else step
        assert found is not None  # a missing checkpoint was refused
        return found, ema
