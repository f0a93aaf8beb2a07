"""The experiment files of the repository, and the experiments in them."""

from dataclasses import replace
from pathlib import Path

import tiny

from mdlm.experiment import Experiment, load_file
from mdlm.models import Bert

FILES = sorted((Path(__file__).parents[1] / "experiments").rglob("*.py"))
FOLLOWING = [path for path in FILES if "\ndef experiment(" in path.read_text(encoding="utf-8")]
"""Those whose experiment follows from that of a run."""


def bert() -> Experiment:
    """An experiment of a small BERT, from which they can follow."""
    network = Bert(width=32, depth=1, heads=2, positions=128)
    return replace(tiny.experiment(Path("text.txt")), network=network)


def loaded(path: Path) -> Experiment:
    """The experiment in a file; where it follows from a run, from one of `bert`."""
    return load_file(path, base=bert)
