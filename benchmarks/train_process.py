"""Runs `mdlm train` in child processes, observes them from outside, and kills them."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdlm.errors import InputError

START, COMPILING, BETWEEN, SAVING = PHASES = (
    "start-up",
    "compiling",
    "between steps",
    "during save",
)


@dataclass
class Life:
    """One start of the command in the folder `folder`; the run folder is `run` in it.

    Args:
        folder: the folder with the experiment.
        words: the arguments of `mdlm train`.
        cache: the folder of compiled programs.
        devices: number of CPU devices of the process.
        name: name of the file for its standard error.
    """

    folder: Path
    words: Sequence[str]
    cache: Path
    devices: int = 1
    name: str = "said.txt"
    began: int | None = field(default=None, init=False)
    """Step that it begins at or resumes from, once printed."""
    took: float = field(default=math.inf, init=False)
    """Seconds until that was printed."""
    lines: int = field(default=0, init=False)
    """Lines of the log at that time."""

    def __post_init__(self):
        self.start = time.monotonic()
        root = str(Path(__file__).parent.parent)
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "MDLM_CACHE": str(self.cache),
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}",
        }
        with open(self.folder / self.name, "w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mdlm", "train", *self.words, "--out", "run"],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    @property
    def said(self) -> str:
        return (self.folder / self.name).read_text(encoding="utf-8")

    def look(self) -> None:
        """Checks whether training has begun."""
        if self.began is None and " device(s), step " in (said := self.said):
            self.began = int(said.split(" device(s), step ")[1].split()[0])
            self.lines = logged(self.folder)
            self.took = time.monotonic() - self.start

    def wait_for(self, what: Callable[[], bool], patience: float = 300) -> bool:
        """Waits until `what()` is true. Returns False if the process ends before.

        Raises InputError if neither happens within `patience` seconds.
        """
        end = time.monotonic() + patience
        while not what():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                self.process.kill()
                raise InputError(
                    f"mdlm train: no progress in {patience:.0f} s; its output: {self.said}"
                )
            time.sleep(0.0005)
            self.look()
        return True

    def kill(self) -> str:
        """Kills the process; returns its phase, judged from the files it left."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.look()
        if is_saving(self.folder):
            return SAVING
        if self.began is None:
            return START
        return BETWEEN if logged(self.folder) > self.lines else COMPILING

    def finish(self, code: int = 0, patience: float = 1200) -> None:
        """Waits for the end. Raises InputError if the exit code is not `code`."""
        try:
            found = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            found = f"no exit code in {patience:.0f} s"
        if found != code:
            raise InputError(f"mdlm train ended with {found}, not {code}; its output: {self.said}")


def logged(folder: Path) -> int:
    """Number of complete lines in a run's log."""
    log = folder / "run" / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is partly written."""
    return not all(name.isdecimal() for name in _in_checkpoints(folder))


def newest(folder: Path) -> int:
    """Step of the newest complete checkpoint, 0 if there is none."""
    found = [int(name) for name in _in_checkpoints(folder) if name.isdecimal()]
    return max(found, default=0)


def _in_checkpoints(folder: Path) -> list[str]:
    checkpoints = folder / "run" / "checkpoints"
    return os.listdir(checkpoints) if checkpoints.is_dir() else []
