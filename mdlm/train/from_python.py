"""Training from Python, as `mdlm train` does from the command line."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mdlm.config.overrides import apply
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.loading import load_changed, source_of
from mdlm.experiment.shipped import located
from mdlm.runs.folder import RunFolder
from mdlm.train.events import Event
from mdlm.train.session import Session


def train(
    experiment: Experiment | str | Path,
    out: str | Path | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> Path:
    """Trains an experiment to its last step and returns the run folder, which `mdlm.load` opens.

    Args:
        experiment: an `Experiment`, or an experiment file by its path or shipped name.
        out: the run folder (default: runs/NAME). An earlier run of the same experiment in it is
            continued from its newest checkpoint.
        settings: settings to replace, by dotted name: {"train.steps": 2000}; also options of the
            file, such as {"task": "mrpc"}.
        on_event: called with each event of training (`mdlm.train.events`).
        options: `checkpoints`, `init_from`, `new_tokenizer`, `fork`, `restart`, `tensorboard`,
            `wandb`, `profile`, `trust`, `verify`, `report`: as for `mdlm.train.session.Session`.

    Raises InputError, before anything is written, if the experiment cannot be trained, or if its
    run could not be opened again: a component must be found by name, or be defined in the file.
    """
    changes = [(name, str(value)) for name, value in (settings or {}).items()]
    if isinstance(experiment, Experiment):
        source, file = None, None
        chosen: Experiment = apply(experiment, changes)
    else:
        source, file = source_of(experiment), located(experiment)
        origin = options.get("init_from")
        base = None if origin is None else RunFolder(origin).experiment
        chosen = load_changed(file, changes, base=base)
    folder = Path(out or f"runs/{chosen.name}")
    session = Session(chosen, folder, source=source, file=file, overrides=changes, **options)
    for event in session.train():
        on_event(event)
    return folder
