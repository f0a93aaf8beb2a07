"""Progress on standard error: a bar on a terminal, elsewhere a line from time to time.

The table of a profile is a result and goes to standard output.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

WORTH_PRINTING = 0.03
"""Fraction of the time spent waiting for data above which it is printed."""


class Progress:
    """Shows progress: a bar on a terminal, elsewhere a line from time to time.

    Args:
        quiet: show nothing, because another process shows it.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self.tty = sys.stderr.isatty() and not quiet
        self._bar: Any = None
        self._task = ""
        self._spoken = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def stage(self, task: str, done: int, total: int) -> None:
        """Shows the progress of a named task; `total` 0 means unknown."""
        if self.tty:
            bar = self._bar
            if bar is None or self._task != task:
                bar = self._open(task, total, done)
            bar.update(done - bar.n)
        elif (done < total or not total) and time.monotonic() - self._spoken > 10:
            self._say(f"{task}: {done}" + (f"/{total}" if total else ""))

    def bar(self, task: str, unit: str) -> Callable[[int, int], None]:
        """Returns a function `(done, total)` that shows the progress of one task."""
        return lambda done, total: self.stage(f"{task} {unit}", done, total)

    def share(self, task: str, done: float | None, words: str) -> None:
        """Shows the finished fraction of a task (`done`, None if unknown), with `words`."""
        if not self.tty:
            if time.monotonic() - self._spoken > 10:
                self._say(f"{task}: {words}" if done is None else f"{task}: {done:.1%}, {words}")
            return
        bar = self._bar
        if bar is None or self._task != task:
            bar = self._open(task, 1000, 0)
            bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"
        if done is None:
            bar.bar_format = "{desc}: {postfix}"
        else:
            bar.update(round(1000 * done) - bar.n)
        bar.set_postfix_str(words)

    def show(self, event) -> None:
        """Shows an event of the training loop."""
        from mdlm.train import events

        if isinstance(event, events.Began):
            self._steps = event.steps
            self._write(
                f"{event.parameters:,} parameters, {event.devices} device(s),"
                f" step {event.step} of {event.steps}"
            )
            if self.tty:
                self._open("training", event.steps, event.step)
        elif isinstance(event, events.Stepped):
            values = event.metrics
            words = f"loss {values['loss']:.3f}"
            if "tokens_per_second" in values:
                words += f", {values['tokens_per_second']:,.0f} tokens/s"
            if "mfu" in values:
                words += f", MFU {values['mfu']:.1%}"
            if values.get("skipped"):
                words += f", {values['skipped']:.0f} skipped"
            if values.get("data_wait", 0) > WORTH_PRINTING:
                words += f", waiting for data {values['data_wait']:.0%}"
            if self.tty and self._bar is not None:
                self._bar.update(event.step - self._bar.n)
                self._bar.set_postfix_str(words)
            elif time.monotonic() - self._spoken > 10:
                self._say(f"step {event.step}/{self._steps}: {words}")
        elif isinstance(event, events.Evaluated):
            value = event.metrics[0].value
            name = "validation" if event.split == "valid" else f"{event.split} split"
            self._write(f"step {event.step}: {name} {value:.4f} nats per token")
        elif isinstance(event, events.Spiked):
            found = event.spike
            words = f"step {event.step}: loss {found.loss:.3f}, median {found.median:.3f}"
            if event.back_to is not None:
                words += f"; back to step {event.back_to}, without the batches since"
            self._write(words)
        elif isinstance(event, events.Profiled):
            self._write(f"{event.profile}\n", sys.stdout)

    def _write(self, words: str, file: TextIO | None = None) -> None:
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(words, file=file or sys.stderr)
        elif file is not None:
            print(words, file=file, flush=True)
        else:
            self._say(words)

    def _say(self, words: str) -> None:
        if self.quiet:
            return
        self._spoken = time.monotonic()
        print(words, file=sys.stderr, flush=True)

    def _open(self, task: str, total: int | None, done: int) -> Any:
        from tqdm import tqdm

        self._close()
        self._task = task
        self._bar = tqdm(
            total=total or None, initial=done, desc=task, dynamic_ncols=True, leave=False
        )
        return self._bar

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
