"""A finished or running run, opened from Python.

run = mdlm.load("runs/quickstart")
run.perplexity()
print(run.generate("The ", length=200).texts[0].text)
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mdlm.evals.blanks import Blanks, Cell
from mdlm.experiment.evaluation import Split
from mdlm.parallel.mesh import MeshShape
from mdlm.run.blanks import blanks
from mdlm.run.evaluating import EvaluatedRun
from mdlm.run.generating import GeneratingRun
from mdlm.run.opened import OpenedRun
from mdlm.samplers.base import Sampler


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

    def blanks(
        self,
        how: Blanks | None = None,
        *,
        split: Split = "valid",
        sampler: Sampler | None = None,
        verifier: OpenedRun | None = None,
        report: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Cell]:
        """Returns how likely the tokens of blanks in rows of a split are, given the other tokens,
        and how often they are what `sampler` fills in (see `evals.blanks`). It is by default the
        run's sampler at temperature 0; `verifier` is that of `generator`.

        Raises InputError if the rows have no room for the blanks, the noise is no mask, or
        attention stays inside documents.
        """
        sampler = sampler or replace(self.experiment.sampler, temperature=0.0)
        generator = self.generator(sampler, verifier=verifier)
        return blanks(self, generator, how or Blanks(), split, report)
