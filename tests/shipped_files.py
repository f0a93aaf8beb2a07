"""The experiment files of the repository, and the experiments in them."""

from dataclasses import replace
from pathlib import Path

import tiny

from mdlm.experiment import Experiment, load_file
from mdlm.models import Bert, CausalTransformer
from mdlm.objectives import Autoregressive
from mdlm.samplers import LeftToRight

FILES = sorted((Path(__file__).parents[1] / "experiments").rglob("*.py"))
FOLLOWING = [path for path in FILES if "\ndef experiment(" in path.read_text(encoding="utf-8")]
"""Those whose experiment follows from that of a run."""


def bert() -> Experiment:
    """An experiment of a small BERT, from which they can follow."""
    network = Bert(width=32, depth=1, heads=2, positions=128)
    return replace(tiny.experiment(Path("text.txt")), network=network)


def causal() -> Experiment:
    """An experiment of a small causal network, from which a diffusion model can follow."""
    network = CausalTransformer(width=32, depth=1, heads=2)
    parts = dict(network=network, objective=Autoregressive(), sampler=LeftToRight())
    return tiny.experiment(Path("text.txt"), **parts)


def base_of(path: Path) -> Experiment:
    """An experiment from which that of a file can follow."""
    return causal() if path.stem == "ar_to_diffusion" else bert()


def loaded(path: Path) -> Experiment:
    """The experiment in a file; where it follows from a run, from a small one."""
    return load_file(path, base=lambda: base_of(path))
