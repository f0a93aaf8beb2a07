"""Writers of metrics besides metrics.jsonl, on request: TensorBoard and Weights & Biases."""

import secrets
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mdlm.config.records import describe
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.files import write

ID = "wandb_id"
"""Name of the file that keeps the id of the run at Weights & Biases."""


Row = list[float | str | None]
"""A row of a table, with a cell for each of its columns."""


class Writer(Protocol):
    """Shows what a run logs elsewhere."""

    def log(self, kind: str, step: int, values: dict[str, float]) -> None: ...

    def add_samples(self, step: int, texts: Sequence[str]) -> None: ...

    def add_table(self, name: str, step: int, columns: list[str], rows: list[Row]) -> None: ...

    def add_picture(self, step: int, path: Path) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name.replace(' ', '_')}", value, step)

    def add_samples(self, step: int, texts: Sequence[str]) -> None:
        for number, text in enumerate(texts, 1):
            indented = "".join(f"    {line}\n" for line in text.splitlines())
            self.writer.add_text(f"samples/{number}", indented, step)

    def add_table(self, name: str, step: int, columns: list[str], rows: list[Row]) -> None:
        self.writer.add_text(name, markdown(columns, rows), step)

    def add_picture(self, step: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"))
        self.writer.add_image(path.stem, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run in a project of Weights & Biases, continued when this run is resumed.

    Its id is random and kept in the run folder. Its group is the experiment's name; its tags are
    the names of the network, process, objective and optimizer.
    """

    def __init__(self, folder: Path, project: str, experiment: Experiment):
        import wandb  # pyright: ignore[reportMissingImports]

        e = experiment
        self.wandb: Any = wandb
        self.run: Any = wandb.init(
            project=project,
            id=kept_id(folder),
            name=str(folder),
            group=e.name,
            tags=[type(part).__name__ for part in (e.network, e.process, e.objective, e.optimizer)],
            resume="allow",
            config=describe(experiment),
            dir=str(folder),
        )

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def add_samples(self, step: int, texts: Sequence[str]) -> None:
        rows = [[step, number, text] for number, text in enumerate(texts, 1)]
        table = self.wandb.Table(columns=["step", "number", "text"], data=rows)
        self.run.log({"samples": table}, step=step)

    def add_table(self, name: str, step: int, columns: list[str], rows: list[Row]) -> None:
        self.run.log({name: self.wandb.Table(columns=columns, data=rows)}, step=step)

    def add_picture(self, step: int, path: Path) -> None:
        self.run.log({path.stem: self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


def markdown(columns: list[str], rows: list[Row]) -> str:
    """Returns a table as Markdown, numbers with four places after the point."""

    def shown(cell: float | str | None) -> str:
        if isinstance(cell, float):
            return f"{cell:.4f}"
        text = "" if cell is None else str(cell)
        return " ".join(text.replace("|", "\\|").split())

    lines = [columns, *rows]
    said = [f"| {' | '.join(map(shown, line))} |\n" for line in lines]
    return "".join([said[0], "|", "---|" * len(columns), "\n", *said[1:]])


def kept_id(folder: Path) -> str:
    """Returns the id at Weights & Biases of the run in `folder`, made when first asked for."""
    path = folder / ID
    if not path.is_file():
        write(path, f"{secrets.token_hex(8)}\n")
    return path.read_text(encoding="utf-8").strip()


def check_packages(tensorboard: bool, wandb: str | None) -> None:
    """Raises InputError if the package of a requested writer is not installed."""
    if tensorboard and find_spec("tensorboardX") is None:
        raise InputError("--tensorboard needs: pip install tensorboardX")
    if wandb and find_spec("wandb") is None:
        raise InputError("--wandb needs: pip install wandb")


def writers(
    folder: Path, tensorboard: bool, wandb: str | None, experiment: Experiment
) -> tuple[Writer, ...]:
    """Returns the requested writers, whose packages are installed (see `check_packages`)."""
    chosen: list[Writer] = []
    if tensorboard:
        chosen.append(TensorBoard(folder))
    if wandb:
        chosen.append(WeightsAndBiases(folder, wandb, experiment))
    return tuple(chosen)
