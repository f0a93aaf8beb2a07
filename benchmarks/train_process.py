"""`mdlm train` in processes of its own, watched from outside and killed."""

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
    """One start of the command, from the folder `folder`, into its folder `run`.

    Args:
        folder: with the experiment.
        words: what follows `mdlm train`.
        cache: folder of compiled programs.
        devices: of the CPU that the process is to have.
        name: of the file that it writes its standard error to.
    """

    folder: Path
    words: Sequence[str]
    cache: Path
    devices: int = 1
    name: str = "said.txt"
    began: int | None = field(default=None, init=False)
    """Step it goes on from, once it has said so."""
    took: float = field(default=math.inf, init=False)
    """Seconds that it took until then."""
    lines: int = field(default=0, init=False)
    """Lines of the log when it had."""

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
        with open(self.folder / self.name, "w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mdlm", "train", *self.words, "--out", "run"],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    @property
    def said(self) -> str:
        return (self.folder / self.name).read_text()

    def look(self) -> None:
        """Notes whether it has begun."""
        if self.began is None and " device(s), step " in (said := self.said):
            self.began = int(said.split(" device(s), step ")[1].split()[0])
            self.lines = logged(self.folder)
            self.took = time.monotonic() - self.start

    def wait_for(self, what: Callable[[], bool], patience: float = 300) -> bool:
        """Waits until that is so. False where the process ended before."""
        end = time.monotonic() + patience
        while not what():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                self.process.kill()
                raise InputError(f"nothing for {patience:.0f} s; it said: {self.said}")
            time.sleep(0.0005)
            self.look()
        return True

    def kill(self) -> str:
        """Kills it; the phase it was in by what it left."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.look()
        if is_saving(self.folder):
            return SAVING
        if self.began is None:
            return START
        return BETWEEN if logged(self.folder) > self.lines else COMPILING

    def finish(self, code: int = 0, patience: float = 1200) -> None:
        """Waits for its end. InputError where that is another than expected."""
        try:
            found = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            found = f"nothing in {patience:.0f} s"
        if found != code:
            raise InputError(f"mdlm train ended with {found}, not {code}; it said: {self.said}")


def logged(folder: Path) -> int:
    """Whole lines of a run's log."""
    log = folder / "run" / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is on disk in part."""
    return not all(name.isdecimal() for name in _in_checkpoints(folder))


def newest(folder: Path) -> int:
    """Step of the newest whole checkpoint, 0 where there is none."""
    found = [int(name) for name in _in_checkpoints(folder) if name.isdecimal()]
    return max(found, default=0)


def _in_checkpoints(folder: Path) -> list[str]:
    checkpoints = folder / "run" / "checkpoints"
    return os.listdir(checkpoints) if checkpoints.is_dir() else []
