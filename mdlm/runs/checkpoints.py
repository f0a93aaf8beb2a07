"""Checkpoints: the whole state and the data position, written in the background by orbax.

A save is atomic: a checkpoint is complete or it does not exist. The newest few are kept, the best
on the validation split, and some permanently. Arrays are restored with the sharding of the current
mesh, whatever the mesh and the number of processes that saved them. Each has the digests of its
files, written before it is complete and compared before it is read (see `mdlm.runs.digests`).
"""

import errno
import gc
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from mdlm.errors import InputError
from mdlm.foreign.typed_json import converted, decoded
from mdlm.runs import digests
from mdlm.runs.checkpoint_paths import Data, first_line, located, reach, steps_in
from mdlm.runs.weights import named
from mdlm.types import ArrayTree

NAMES = {"nats per token": "nelbo"}
"""Metrics that are saved with a checkpoint under another name."""
STAMPED = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that are written when the checkpoint becomes complete. Their contents are not used."""


class Checkpoints:
    """The checkpoints of one run, in `folder`. A context manager: leaving it waits for writes.

    Args:
        folder: a folder of this machine, or a URL, see `located`.
        keep: number of newest checkpoints that are kept.
        keep_every: checkpoints at multiples of this many steps are kept permanently (0: none).
        best: the metric by which the best one is kept, the lower the better.
        read_only: change nothing in the folder. Otherwise the remains of interrupted saves are
            removed, so only the training run itself, one at a time, may open it for writing.
        verify: compare all bytes of a checkpoint with its digests before it is read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int = 2,
        keep_every: int = 0,
        *,
        best: str = "nats per token",
        read_only: bool = False,
        verify: bool = True,
    ):
        _quieten()
        self.folder = located(folder)
        reach(self.folder)
        self._verifies, self._sound = verify, set[int]()
        self._selects = NAMES.get(best, best)
        self._saving: int | None = None
        policies: list[managers.PreservationPolicy] = [
            managers.LatestN(keep),
            managers.BestN(
                get_metric_fn=self._metric,
                reverse=True,
                n=1,
                # A checkpoint without metrics is the remainder of an interrupted deletion.
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if keep_every:
            policies.append(managers.EveryNSteps(keep_every))
        with self._reading():
            self.manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    best_fn=self._metric,
                    best_mode="min",
                    preservation_policy=managers.AnyPreservationPolicy(policies),
                    create=not read_only,
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
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

    @property
    def best(self) -> int | None:
        """Step of the best complete checkpoint; None if no validation was saved with one."""
        found = {step: self._metric(self.manager.metrics(step) or {}) for step in self.steps}
        finite = {step: value for step, value in found.items() if value < math.inf}
        return min(finite, key=finite.__getitem__, default=None)

    def save(
        self,
        step: int,
        state: ArrayTree,
        data: dict[str, Any],
        found: Mapping[str, float] | None = None,
    ) -> None:
        """Starts writing a checkpoint; returns once the arrays have left the devices.

        `found` are the metrics of a validation; those that are not finite are left out.
        Raises InputError if the operating system refuses the write, e.g. on a full disk.
        """
        finite = {name: value for name, value in (found or {}).items() if math.isfinite(value)}
        metrics = {NAMES.get(name, name): value for name, value in finite.items()}
        with _disk(self.folder):
            self.manager.wait_until_finished()  # `_seal` is of one save at a time
            self._saving = step
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
                ),
                metrics=metrics,
            )

    def _metric(self, metrics: dict[str, float]) -> float:
        return metrics.get(self._selects, math.inf)

    def _seal(self) -> None:
        """Writes the digests of the checkpoint being saved: all files stand, it is not complete."""
        if jax.process_index() > 0:
            return
        names = {path.name: path for path in self.folder.iterdir()}
        unfinished = [name for name in names if name.startswith(f"{self._saving}.orbax-")]
        # On object stores, where nothing is renamed, a checkpoint is written under its own name.
        digests.write(names[next(iter(unfinished), str(self._saving))], leave_out=STAMPED)

    def wait(self) -> None:
        """Returns when everything is on disk. Raises InputError as `save` does."""
        with _disk(self.folder):
            self.manager.wait_until_finished()

    def restore(self, abstract: ArrayTree, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns the state and what was saved as `data`. `abstract` has shapes, dtypes, shardings.

        Raises InputError if there is no checkpoint, or it has other shapes or is damaged.
        """
        step = self._existing(step)
        self._check_shapes(step, abstract)
        with self._reading(step):
            out = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
            data = {**out["data"], **converted(out["data"], Data)}
        return out["state"], data

    def check(self, abstract: ArrayTree, step: int | None = None) -> None:
        """Raises InputError if there is no such checkpoint, or it has arrays of other shapes."""
        self._check_shapes(self._existing(step), abstract)

    def restore_part(self, abstract: ArrayTree, step: int | None = None) -> Any:
        """Returns only the entries of the state that are in `abstract`, e.g. `{"ema": ...}`."""
        step = self._existing(step)
        self._check_shapes(step, abstract)
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        with self._reading(step), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(self.folder / str(step) / "state", args=args)

    def has(self, *path: str) -> bool:
        """Whether the newest checkpoint has an entry under this path of names."""
        prefix = ".".join(path) + "."
        return any(name.startswith(prefix) for name in self._stored(self._existing(None)))

    def _stored(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of a checkpoint's arrays, by name."""
        with self._reading(step), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = reader.metadata(self.folder / str(step) / "state").item_metadata
            if found is None:
                raise ValueError("the list of its arrays is missing or damaged")
            return {name: tuple(leaf.shape) for name, leaf in named(found.tree).items()}

    @contextmanager
    def _reading(self, step: int | None = None) -> Iterator[None]:
        """Turns errors in reading a checkpoint into an InputError that says what to do."""
        try:
            yield
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # orbax and TensorStore raise many kinds
            _let_others_end(error)
            if (reason := _disk_trouble(error)) == os.strerror(errno.EACCES):
                raise InputError(f"{self.folder}: cannot be read ({reason})") from error
            step = self._unreadable_metrics() if step is None else step
            if step is None:
                raise InputError(
                    f"{self.folder}: the description of a checkpoint is damaged"
                    f" ({first_line(error)}); move that checkpoint away"
                ) from error
            raise InputError(
                f"{self.folder}: the checkpoint of step {step} is damaged"
                f" ({first_line(error)}); {self._way_out(step)}"
            ) from error

    def _unreadable_metrics(self) -> int | None:
        """Returns the newest step with damaged metrics; orbax reads those of all checkpoints."""
        for step in reversed(steps_in(self.folder)):
            try:
                decoded(
                    (self.folder / str(step) / "metrics" / "metrics").read_bytes(),
                    dict[str, float],
                )
            except FileNotFoundError:
                continue
            except ValueError:
                return step
        return None

    def _existing(self, step: int | None) -> int:
        found = self.latest if step is None else step
        if found is None or found not in self.manager.all_steps():
            which = "" if step is None else f" of step {step}"
            raise InputError(f"{self.folder}: no checkpoint{which}")
        if self._verifies and found not in self._sound:
            bad = digests.damage_together(self.folder / str(found))
            if bad is not None:
                raise InputError(
                    f"{self.folder}: the checkpoint of step {found} is damaged ({bad};"
                    f" --no-verify reads it all the same); {self._way_out(found)}"
                )
            self._sound.add(found)
        return found

    def _way_out(self, step: int) -> str:
        """Returns what can be done when the checkpoint of `step` is damaged."""
        others = [other for other in reversed(steps_in(self.folder)) if other < step]
        for other in others:
            if digests.damage(self.folder / str(other)) is None:
                return f"to use the one of step {other}, move {self.folder / str(step)} away"
        return "no older checkpoint is left" + (" that is sound" if others else "")

    def _check_shapes(self, step: int, abstract: ArrayTree) -> None:
        there = self._stored(step)
        for name, leaf in named(abstract).items():
            shape = there.get(name)
            if shape != tuple(leaf.shape):
                raise InputError(
                    f"{self.folder}: the checkpoint of step {step} has {name} of shape"
                    f" {shape}, this experiment has {tuple(leaf.shape)}"
                )


def _quieten() -> None:
    """Keeps the libraries from printing the error of each array that cannot be written: one is
    raised. The others arrive when nothing waits for them any more."""
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    shown, unraisable = sys.excepthook, sys.unraisablehook
    if getattr(shown, "func", None) is _show:
        return
    sys.excepthook = partial(_show, shown)
    sys.unraisablehook = lambda found: _is_late(found.exc_value) or unraisable(found)


def _show(shown: Callable[..., None], kind: type, error: BaseException, trace: Any) -> None:
    if not _is_late(error):
        shown(kind, error, trace)


def _is_late(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _let_others_end(error: BaseException | None) -> None:
    """Waits for the other readers or writers of a checkpoint's arrays after one of them failed.

    Orbax reads and writes all arrays at once and does not cancel the others when one fails. Their
    errors have the same cause and are not shown.
    """
    hooks = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = sys.excepthook = lambda *_: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()
        time.sleep(0.3)
        gc.collect()
    finally:
        sys.unraisablehook, sys.excepthook = hooks


@contextmanager
def _disk(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = _disk_trouble(error)
        if reason is None:
            raise
        _let_others_end(error)
        whole = [step for step in steps_in(folder) if (folder / str(step) / digests.NAME).exists()]
        kept = f"that of step {whole[-1]} is the newest intact" if whole else "there is none before"
        raise InputError(
            f"{folder}: the checkpoint could not be written ({reason}); {kept}: make room there,"
            " then give the same command again"
        ) from error


def _disk_trouble(error: BaseException | None) -> str | None:
    """Returns the operating system's error message behind an exception, if there is one.

    TensorStore, which writes the arrays, gives it as an error number inside its message.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number:
            return os.strerror(int(number.group(1)))
        error = error.__cause__ or error.__context__
    return None
