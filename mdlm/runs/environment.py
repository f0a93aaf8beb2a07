"""The environment of a start of a run, as the run folder records it."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from mdlm.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers", "datasets")


def environment() -> dict[str, Any]:
    """Returns versions, devices, the command and the state of the git checkout."""
    return {
        "mdlm": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processes": jax.process_count(),
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "command": sys.argv,
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(here), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            encoding="utf-8",
        ).stdout.strip()

    try:
        commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain")
        return {"commit": commit, "changed_files": changes.splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None
