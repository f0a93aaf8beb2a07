"""The run folder: all files of a run.

experiment.py   the experiment file of the first start    metrics.jsonl   one line per entry
config.json     its values, the overrides, fingerprint    samples.txt     text by step
env.json        versions, devices, git, of each start     curves.png      plots
data/           the tokenizer, token counts               checkpoints/    training states
weights.safetensors   parameters alone, where they were imported or written
base.safetensors      parameters that training does not change, where `tune` or the objective
                      says so
evaluations.jsonl     results of `mdlm eval`
wandb_id        the run's id at Weights & Biases, if it is logged there
digests.json    digests of what the run is opened with, compared when it is

A resume with a changed experiment file keeps the new text beside the first, as
`experiment-DATE.py`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from mdlm.cluster import process_group
from mdlm.config import records
from mdlm.config.components import UnknownComponent, classes_in
from mdlm.config.field_types import default_of
from mdlm.config.overrides import apply
from mdlm.errors import InputError
from mdlm.experiment.experiment import Experiment
from mdlm.experiment.identity import fingerprint, identity, identity_of
from mdlm.experiment.loading import load_file
from mdlm.files import replaced
from mdlm.foreign.arrays import numbers
from mdlm.runs import digests
from mdlm.runs.checkpoint_paths import located
from mdlm.runs.environment import environment
from mdlm.runs.log import Log
from mdlm.runs.reading import config_of, starts_of
from mdlm.runs.weights import NAME as WEIGHTS
from mdlm.tuning.base import Tuning
from mdlm.version import __version__

BASE = "base.safetensors"
COUNTS = "token_counts.npy"
BEGINNING = ".begun"
"""Name of a file that marks a folder in which a run is being created."""


class RunFolder:
    """A run folder on disk. Only the first process writes; the others read.

    Args:
        path: the folder.
        checkpoints: folder or URL of the run's checkpoints. None: that of the existing run; for a
            new run, `checkpoints/` inside.
        trust: read the experiment by executing the folder's copy of the experiment file, instead of
            from config.json.
        verify: compare files with their digests before they are used.

    `log` has the metrics and samples of the run.
    """

    def __init__(
        self,
        path: str | Path,
        checkpoints: str | Path | None = None,
        *,
        trust: bool = False,
        verify: bool = True,
    ):
        self.path = Path(path)
        self.verify, self._is_verified = verify, not verify
        self.trust = trust
        self.asked = None if checkpoints is None else located(checkpoints)
        self.writes = process_group.is_main()
        self.log = Log(self.path, writes=self.writes)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.json").is_file()

    @property
    def checkpoints(self) -> epath.Path:
        """The folder of the run's checkpoints, on any disk or storage that orbax writes to."""
        return self.asked or self.kept()

    def kept(self) -> epath.Path:
        """Returns where the run has kept its checkpoints until now."""
        elsewhere = self.config().get("checkpoints") if self.exists else None
        return located(elsewhere or self.path / "checkpoints")

    @property
    def data(self) -> Path:
        return self.path / "data"

    def changes(self, experiment: Experiment) -> list[str]:
        """Lists the values that differ from those of the run's last start, both in each line.

        None are listed if that start cannot be read: then it has a component that is not installed
        here.
        """
        if not self.exists:
            return []
        try:
            record, known = self.config()["experiment"], classes_in(experiment)
            there = records.read_fields(record, Experiment, self._title, known)
        except InputError:
            return []
        here = {f.name: getattr(experiment, f.name) for f in fields(experiment)}
        defaults = {f.name: default_of(f) for f in fields(experiment)}
        return records.differences({**defaults, **there}, here, form="{}: {} -> {}")

    def begin(
        self,
        source: str | None,
        overrides: Sequence[tuple[str, str]],
        experiment: Experiment,
        file: Path | None = None,
        copy: Callable[[], None] = lambda: None,
        *,
        step: int = 0,
        changed: Sequence[str] = (),
    ) -> None:
        """Writes the experiment's copy, its values and the environment, after `agreement.check`.

        `source` is the text of the experiment file, None if there is none; `file` is where it lies.
        A resumed run keeps its first copy, and its new environment is added to env.json, with the
        values that `changed` at `step`. `copy` fills the folder with what the run begins from.
        """
        records.record(experiment)  # raises on all processes if it cannot be written
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        inside = self.checkpoints == located(self.path / "checkpoints")
        elsewhere = None if inside else str(self.checkpoints)
        earlier = self.starts() if self.exists else []
        if not self.exists:
            (self.path / BEGINNING).touch()
        began = datetime.now(UTC)
        text, name = (source, self._name(source, began)) if source is not None else (None, None)
        start = {
            "started": began.isoformat(timespec="seconds"),
            "experiment": name,
            "file": None if file is None else str(file.absolute()),
            "folder": str(Path.cwd()),
        }
        if changed:
            start |= {"step": step, "changed": list(changed)}
        config = {
            "fingerprint": fingerprint(experiment),
            "overrides": list(overrides),
            "checkpoints": elsewhere,
            "experiment": records.record(experiment),
        }
        texts = {
            **({name: text} if name is not None and text is not None else {}),
            "env.json": json.dumps([*earlier, {**start, **environment()}], indent=1) + "\n",
            # Last, because its presence says that the folder is a run.
            "config.json": json.dumps(config, indent=1) + "\n",
        }
        copy()
        self._write_sealed(texts)
        (self.path / BEGINNING).unlink(missing_ok=True)

    def _name(self, source: str, began: datetime) -> str:
        """Returns the name of the file that holds, or will hold, the experiment file's text."""
        files = [self.path / "experiment.py", *sorted(self.path.glob("experiment-*.py"))]
        if self.exists and files[0].is_file():
            for file in files:
                if file.read_text(encoding="utf-8") == source:
                    return file.name
            return f"experiment-{began:%Y%m%dT%H%M%S.%fZ}.py"
        return "experiment.py"

    def starts(self) -> list[dict[str, Any]]:
        """Returns the environment and the date of each start of the run, oldest first."""
        return starts_of(self.path / "env.json")

    @property
    def started_in(self) -> Path | None:
        """The working folder of the run's first start, None if it is not recorded."""
        found = self._first("folder")
        return None if found is None else Path(found)

    def _first(self, name: str) -> str | None:
        return next((start[name] for start in self.starts() if start.get(name)), None)

    def save_counts(self, counts: Int[np.ndarray, " v"] | None) -> None:
        """Writes the token counts from which the process is built; None writes nothing."""
        if counts is not None and self.writes:
            name = f"{self.data.name}/{COUNTS}"
            with digests.sealed(self.path, name), replaced(self.path / name) as new:
                with open(new, "wb") as file:
                    np.save(file, counts)

    def save_data(self, files: Mapping[str, str]) -> None:
        """Writes texts into the folder `data`, by name: those of a tokenizer
        (`Tokenizer.files`)."""
        self.data.mkdir(parents=True, exist_ok=True)
        self._write_sealed({f"{self.data.name}/{name}": text for name, text in files.items()})

    def _write_sealed(self, texts: Mapping[str, str]) -> None:
        with digests.sealed(self.path, *texts):
            for name, text in texts.items():
                with replaced(self.path / name) as new:
                    new.write_text(text, encoding="utf-8")

    def counts(self) -> Int[np.ndarray, " v"] | None:
        """Returns the saved token counts, None if there are none."""
        path = self.data / COUNTS
        try:
            return numbers(path.read_bytes()) if path.is_file() else None
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: damaged ({error}); restore it from a copy") from error

    def config(self) -> dict[str, Any]:
        """Returns the contents of config.json. Raises InputError if this is not a run folder."""
        if not self.exists:
            raise InputError(f"{self.path}: not a run folder (no config.json)")
        if not self._is_verified:
            bad = digests.damage(self.path, leave_out=(WEIGHTS, BASE))
            if bad is not None:
                raise InputError(digests.refusal(self.path, bad))
            self._is_verified = True
        return config_of(self.path / "config.json")

    def experiment(self) -> Experiment:
        """Returns the run's experiment, read from config.json without executing code; with `trust`,
        from the folder's copy of the experiment file, which is executed.

        Raises InputError if config.json cannot be read, or names components not installed.
        """
        config, copy = self.config(), self.path / "experiment.py"
        if self.trust:
            # A file whose experiment follows from that of another run keeps its network.
            experiment = load_file(copy, copy_of=self._first("file"), base=self._recorded)
            return apply(experiment, [(name, text) for name, text in config["overrides"]])
        return self._recorded()

    def _recorded(self) -> Experiment:
        with self._described():
            return records.read(self.config()["experiment"], Experiment, self._title)

    def tune(self) -> Tuning | None:
        """Returns which parameters the run trains; None: all.

        Raises InputError as `experiment` does.
        """
        return self._part("tune")

    def head(self) -> Any:
        """Returns the head of the run's experiment (`mdlm.models.heads`), None if it has none.

        Raises InputError as `experiment` does.
        """
        return self._part("head")

    def _part(self, name: str) -> Any:
        if self.trust:
            return getattr(self.experiment(), name)
        record = {k: v for k, v in self.config()["experiment"].items() if k == name}
        with self._described():
            return records.read_fields(record, Experiment, self._title).get(name)

    @property
    def _title(self) -> str:
        return str(self.path / "config.json")

    def identity(self, experiment: Experiment) -> dict[str, Any]:
        """Returns the identity of the folder's run. Classes in `experiment` are not looked up."""
        if self.trust:
            return identity(self.experiment())
        with self._described():
            return identity_of(self.config()["experiment"], self._title, classes_in(experiment))

    @contextmanager
    def _described(self) -> Iterator[None]:
        """Adds what the user can do to errors about config.json."""
        try:
            yield
        except UnknownComponent as error:
            raise InputError(
                f"{error}. Install the package that has the missing component, or give"
                f" --trust-experiment (in Python, trust=True): it executes the run's own copy,"
                f" {self.path / 'experiment.py'}"
            ) from error
        except InputError as error:
            made = [start.get("mdlm", __version__) for start in self.starts()][-1:]
            if made in ([], [__version__]):
                raise
            raise InputError(
                f"{error}. The run is of mdlm {made[0]}, this is {__version__}: use that version"
            ) from error
