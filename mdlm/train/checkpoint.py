"""Checkpoints: the whole state and the data position, written in the background by orbax.

A save is atomic: a checkpoint is complete or it does not exist. The newest few are kept, the best
by validation, and some for good. Restoring places every array as the present mesh wants it.
"""

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from mdlm.types import ArrayTree, InputError

METRIC = "nelbo"


def _metric(metrics: dict[str, float]) -> float:
    return metrics.get(METRIC, float("inf"))


class Checkpoints:
    """The checkpoints of one run, in `folder`. A context manager: leaving it waits for writes.

    Args:
        keep: newest ones that are kept.
        keep_every: those at multiples of so many steps are kept for good (0: none is).
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = folder.absolute()
        policies: list[managers.PreservationPolicy] = [
            managers.LatestN(keep),
            managers.BestN(get_metric_fn=_metric, reverse=True, n=1),
        ]
        if keep_every:
            policies.append(managers.EveryNSteps(keep_every))
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_metric,
                best_mode="min",
                preservation_policy=managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self.manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints."""
        return sorted(self.manager.all_steps())

    def save(
        self, step: int, state: ArrayTree, data: dict[str, Any], nelbo: float | None = None
    ) -> None:
        """Starts writing a checkpoint; returns once the arrays have left the devices.

        InputError where the disk does not take it.
        """
        metrics = {METRIC: nelbo} if nelbo is not None and math.isfinite(nelbo) else {}
        with _disk(self.folder):
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
                ),
                metrics=metrics,
            )

    def wait(self) -> None:
        """Returns when everything is on disk. InputError where the disk does not take it."""
        with _disk(self.folder):
            self.manager.wait_until_finished()

    def restore(self, abstract: ArrayTree, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """State, and what was saved as `data`. `abstract` gives shapes, types and shardings.

        InputError where there is no checkpoint, or one of other shapes.
        """
        step = self._existing(step)
        self._check_shapes(step, abstract)
        out = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return out["state"], out["data"]

    def restore_part(self, abstract: ArrayTree, step: int | None = None) -> Any:
        """Only the entries of the state that `abstract` has (a dictionary, e.g. `{"ema": ...}`)."""
        step = self._existing(step)
        self._check_shapes(step, abstract)
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(self.folder / str(step) / "state", args=args)

    def has(self, *path: str) -> bool:
        """Whether the newest checkpoint has an entry below this path of names."""
        prefix = ".".join(path) + "."
        return any(name.startswith(prefix) for name in self._stored(self._existing(None)))

    def _stored(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shapes of a checkpoint's arrays, by name."""
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            stored = reader.metadata(self.folder / str(step) / "state").item_metadata.tree
        return {_name(path): tuple(leaf.shape) for path, leaf in _leaves(stored)}

    def _existing(self, step: int | None) -> int:
        found = self.latest if step is None else step
        if found is None or found not in self.manager.all_steps():
            which = "" if step is None else f" of step {step}"
            raise InputError(f"{self.folder}: no checkpoint{which}")
        return found

    def _check_shapes(self, step: int, abstract: ArrayTree) -> None:
        there = self._stored(step)
        for path, leaf in _leaves(abstract):
            shape = there.get(_name(path))
            if shape != tuple(leaf.shape):
                raise InputError(
                    f"{self.folder}: the checkpoint of step {step} has {_name(path)} of shape"
                    f" {shape}, this experiment has {tuple(leaf.shape)}"
                )


def _leaves(tree: ArrayTree) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: tuple) -> str:
    parts = [getattr(p, "key", getattr(p, "idx", getattr(p, "name", None))) for p in path]
    return ".".join(str(part) for part in parts)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = _disk_trouble(error)
        if reason is None:
            raise
        raise InputError(
            f"{folder}: the checkpoint could not be written ({reason});"
            " earlier checkpoints are intact"
        ) from error


def _disk_trouble(error: BaseException | None) -> str | None:
    """The operating system's complaint behind an exception, if there is one.

    TensorStore, which writes the arrays, gives it as a number inside a message.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number:
            return os.strerror(int(number.group(1)))
        error = error.__cause__ or error.__context__
    return None
