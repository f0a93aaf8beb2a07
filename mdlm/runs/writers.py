"""Writers of metrics besides metrics.jsonl, on request: TensorBoard and Weights & Biases."""

import importlib.util
from pathlib import Path
from typing import Any, Protocol

from mdlm.config.records import describe
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment


class Writer(Protocol):
    """Logs numbers by name."""

    def log(self, kind: str, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError("--tensorboard needs: pip install tensorboardX") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name.replace(' ', '_')}", value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run in a project of Weights & Biases, resumed when this run is resumed."""

    def __init__(self, folder: Path, project: str, experiment: Experiment):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError("--wandb needs: pip install wandb") from error
        name = str(folder).replace("/", "-")
        self.run: Any = wandb.init(
            project=project, id=name, name=name, resume="allow", config=describe(experiment)
        )

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


def check_packages(tensorboard: bool, wandb: str | None) -> None:
    """Raises InputError if the package of a requested writer is not installed."""
    for option, asked, package in (
        ("--tensorboard", tensorboard, "tensorboardX"),
        ("--wandb", wandb, "wandb"),
    ):
        if asked and importlib.util.find_spec(package) is None:
            raise InputError(f"{option} needs: pip install {package}")


def writers(
    folder: Path, tensorboard: bool, wandb: str | None, experiment: Experiment
) -> tuple[Writer, ...]:
    """Returns the requested writers. Raises InputError if the package of one is not installed."""
    chosen: list[Writer] = []
    if tensorboard:
        chosen.append(TensorBoard(folder))
    if wandb:
        chosen.append(WeightsAndBiases(folder, wandb, experiment))
    return tuple(chosen)
