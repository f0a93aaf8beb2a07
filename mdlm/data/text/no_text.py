"""The source of a run without text of its own."""

from dataclasses import dataclass

from mdlm.data.text.source import Source
from mdlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NoText(Source):
    """No text: an imported network knows none.

    `mdlm eval RUN --data FILE` and `--on NAME` bring text, and so does the experiment of a run that
    begins from this one. Reading raises InputError, which says so.
    """

    @property
    def splits(self) -> tuple[str, ...]:
        return ()

    @property
    def name(self) -> str:
        return "an imported network"

    def _documents(self, split: str) -> list[str]:
        raise AssertionError("there is no split")

    def _check(self, split: str) -> None:
        raise InputError(
            f"{self.name} has no text of its own: evaluate on files with --data FILE, or on a known"
            " text with --on NAME; train with an experiment that has text, and --init-from RUN"
        )
