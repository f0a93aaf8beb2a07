"""The checkpoints that a run writes, and the sound one that is left when it makes no progress."""

from typing import Any

from mdlm.runs.checkpoints import Checkpoints
from mdlm.runs.folder import RunFolder
from mdlm.runs.past import note_saved
from mdlm.train.events import Saved
from mdlm.train.guard import Diverged
from mdlm.train.soundness import Soundness, given_up
from mdlm.train.step import State, saved


class Saving:
    """Saves states of the run in `folder`, and notes there that it has done so."""

    saved: int | None
    """Step of the newest checkpoint."""
    found: dict[str, float]
    """Metrics of a validation, which the next checkpoint is saved with."""

    def __init__(self, checkpoints: Checkpoints, folder: RunFolder):
        self.checkpoints, self.folder = checkpoints, folder
        self.go_on_from(checkpoints.latest)

    def go_on_from(self, step: int | None) -> None:
        """Begins after the checkpoint of `step`; None if there is none."""
        self.saved, self.found = step, {}

    def save(self, step: int, state: State, data: dict[str, Any]) -> Saved:
        """Starts writing a checkpoint."""
        self.checkpoints.save(step, saved(state), data, self.found)
        if self.saved is not None:  # a save first waits for the one before it
            self._note()
        self.go_on_from(step)
        return Saved(step)

    def finish(self) -> None:
        """Waits until the newest checkpoint is complete."""
        self.checkpoints.wait()
        self._note()

    def diverged(
        self, in_a_row: int, step: int, soundness: Soundness, abstract: State, base: State
    ) -> Diverged:
        """Returns the end of a run that makes no progress; it names the newest sound checkpoint."""
        self.checkpoints.wait()
        left = soundness.newest(self.checkpoints, abstract, base)
        return Diverged(given_up(in_a_row, step, left))

    def _note(self) -> None:
        if self.folder.writes:
            note_saved(self.folder.path)
