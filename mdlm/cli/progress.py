"""Progress on standard error: a bar on a terminal, elsewhere a line from time to time.

What takes long to compile is named, in both. The table of a profile is a result and goes to
standard output.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mdlm.cluster import compiling
from mdlm.foreign.output import raw
from mdlm.foreign.shown import visible

WORTH_PRINTING = 0.03
"""Fraction of the time spent waiting for data above which it is printed."""
PATIENCE = 10.0
"""Seconds between two lines of progress, where there is no terminal."""
QUICK = 2.0
"""Seconds that a compilation may take without a line about it, where there is no terminal."""
NEWEST = 0.1
"""Weight of the newest loss in the smoothed one."""


class Progress:
    """Shows progress: a bar on a terminal, elsewhere a line from time to time.

    Where TERM is `dumb`, a terminal gets lines too, and NO_COLOR takes the colours away. Use it as
    a context, in which compilations (`mdlm.cluster.compiling`) are shown too.

    Args:
        quiet: show nothing, because another process shows it.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self.tty = False
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console

            from mdlm.cli.bars import Bars

            console = Console(file=raw(sys.stderr))
            self.tty = console.is_interactive
            self._bars = Bars(console)
        self._spoken = -PATIENCE
        self._steps = 0
        self._loss = Smoothed()
        self._open = ExitStack()

    def __enter__(self) -> "Progress":
        self._open.enter_context(compiling.watched(self.compiling))
        return self

    def __exit__(self, *_) -> None:
        self._open.close()
        if self.tty:
            self._bars.close()

    def stage(self, task: str, done: int, total: int) -> None:
        """Shows the progress of a task. `total` 0 means unknown.

        The unit of both numbers follows the name of the task: `tokenizing train, characters`. A
        task without one, such as `training the tokenizer`, is shown without numbers.
        """
        name, _, unit = visible(task).partition(", ")
        count = f"{done:,}" + (f" of {total:,}" if total else "") + f" {unit}" if unit else ""
        if self.tty and total and done >= total:
            self._bars.close()
        elif self.tty:
            self._bars.show(name, done, total if total and unit else None, count, "")
        elif done < total or not total:
            self._say_rarely(f"{name}: {count}" if unit else name)

    def bar(self, task: str, unit: str) -> Callable[[int, int], None]:
        """Returns a function `(done, total)` that shows the progress of one task."""
        return lambda done, total: self.stage(f"{task}, {unit}", done, total)

    def share(self, task: str, done: float | None, words: str) -> None:
        """Shows the finished fraction of a task (`done`, None if unknown), with `words`."""
        share = "" if done is None else f"{done:.1%}"
        if self.tty:
            shown = visible(task), visible(words)
            self._bars.show(shown[0], done or 0.0, None if done is None else 1.0, share, shown[1])
        else:
            self._say_rarely(f"{task}: {share}{', ' if share else ''}{words}")

    def show(self, event) -> None:
        """Shows an event of the training loop. The loss is smoothed over about ten lines."""
        from mdlm.train import events

        if isinstance(event, events.Began):
            self._steps = event.steps
            self._write(
                f"{event.parameters:,} parameters, {event.devices} device(s),"
                f" step {event.step} of {event.steps}"
            )
            self._train(event.step, "")
        elif isinstance(event, events.Entered):
            self._write(f"step {event.step}: {event.words}")
            self._loss = Smoothed()
        elif isinstance(event, events.Stepped):
            words = self._words(event.metrics)
            if self.tty:
                self._train(event.step, words)
            else:
                self._say_rarely(f"step {event.step}/{self._steps}: {words}")
        elif isinstance(event, events.Evaluated):
            first, *more = event.metrics
            name = "validation" if event.split == "valid" else f"{event.split} split"
            words = f"{first.value:.4f} {first.name}"
            if first.name != "nats per token":  # of what is no text there is more to say
                words = ", ".join([words, *(f"{m.name} {m.value:.4f}" for m in more)])
            self._write(f"step {event.step}: {name} {words}")
        elif isinstance(event, events.Spiked):
            found = event.spike
            words = f"step {event.step}: loss {found.loss:.3f}, median {found.median:.3f}"
            if event.back_to is not None:
                words += f"; back to step {event.back_to}, without the batches since"
                self._loss = Smoothed()
            self._write(words)
        elif isinstance(event, events.Profiled):
            with self._bars.hidden() if self.tty else ExitStack():
                print(f"{event.profile}\n", flush=True)

    def _words(self, values: dict[str, float]) -> str:
        """The smoothed loss of a logged step, and what else is worth saying."""
        words = f"smoothed loss {self._loss.after(values['loss']):.3f}"
        for name in ("reward", "margin"):
            if name in values:
                words += f", {name} {values[name]:.3f}"
        if "tokens_per_second" in values:
            words += f", {values['tokens_per_second']:,.0f} tokens/s"
        # The peak of a CPU is measured at the start: too low if the machine was busy then.
        if 0 <= values.get("mfu", -1) <= 1:
            words += f", MFU {values['mfu']:.1%}"
        if values.get("skipped"):
            words += f", {values['skipped']:.0f} skipped"
        if values.get("data_wait", 0) > WORTH_PRINTING:
            words += f", waiting for data {values['data_wait']:.0%}"
        return words

    def _train(self, step: int, words: str) -> None:
        if self.tty:
            count = f"{step:,} of {self._steps:,} steps"
            self._bars.show("training", step, self._steps, count, words)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Shows that `what` is being compiled; without a terminal, if it takes long."""
        if self.tty:
            with self._bars.compiling(what):
                yield
            return
        began = time.monotonic()
        timer = threading.Timer(QUICK, self._write, [f"compiling {what}"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        took = time.monotonic() - began
        if took > QUICK:
            self._write(f"compiled {what} in {took:.0f} s")

    def _write(self, words: str) -> None:
        if self.quiet:
            return
        self._spoken = time.monotonic()
        print(words, file=sys.stderr, flush=True)

    def _say_rarely(self, words: str) -> None:
        if time.monotonic() - self._spoken > PATIENCE:
            self._write(words)


class Smoothed:
    """A running mean of numbers that forgets the older ones. Numbers that are not finite count
    only while there are no others."""

    def __init__(self):
        self._sum = self._weight = 0.0

    def after(self, value: float) -> float:
        """Returns the mean with `value` as the newest number."""
        if math.isfinite(value):
            self._sum += NEWEST * (value - self._sum)
            self._weight += NEWEST * (1 - self._weight)
        return self._sum / self._weight if self._weight else value
