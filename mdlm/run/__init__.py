"""A finished or running run, opened from Python.

run = mdlm.load("runs/quickstart")
run.perplexity()
print(run.generate("The ", length=200).texts[0].text)
"""

from pathlib import Path

from mdlm.parallel.mesh import MeshShape
from mdlm.run.evaluating import EvaluatedRun
from mdlm.run.generating import GeneratingRun


def load(
    path: str | Path,
    *,
    step: int | None = None,
    mesh: MeshShape | None = None,
    trust: bool = False,
    verify: bool = True,
) -> "Run":
    """Opens a run folder at its newest checkpoint, or at the checkpoint of `step`. Weights in the
    folder are used if no checkpoint is newer.

    The run may have been trained on other devices. If its mesh does not fit the devices here and
    `mesh` is None, the parameters are spread over all devices. No code of the folder is executed,
    except with `trust`: the experiment is then read by executing the folder's copy of the
    experiment file, not from config.json. Without `verify`, files are not compared with their
    digests. Raises InputError if the folder is not a run, has no such checkpoint, is damaged, or
    names components that are not installed.
    """
    return Run(path, step=step, mesh=mesh, trust=trust, verify=verify)


class Run(EvaluatedRun, GeneratingRun):
    """An experiment with its tokenizer and EMA parameters: evaluates and generates."""
