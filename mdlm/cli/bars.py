"""What a terminal shows of work in progress, drawn by rich: a bar, and a line of what compiles."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich import progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


class Clock(ProgressColumn):
    """The time that is left; for a task whose end is not known, the time that it has taken."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = task.elapsed if task.total is None else task.time_remaining
        if seconds is None:
            return Text("")
        left = "" if task.total is None else " left"
        return Text(f"{timedelta(seconds=int(seconds))}{left}", style="cyan")


class Live(progress.Progress):
    """Bars, with the words of the tasks below them."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["words"]:
                yield Text(f"  {task.fields['words']}", no_wrap=True, overflow="ellipsis")


class Bars:
    """The bar of one task at a time, over the whole width of a terminal; it vanishes in the end.

    The time left is estimated from the speed since the task began, or since something was last
    compiled.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._live = Live(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
            Clock(table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
            redirect_stdout=False,
            refresh_per_second=4,
            get_time=clock,
            speed_estimate_period=float("inf"),
        )
        self._task: Task | None = None

    def show(self, name: str, done: float, total: float | None, count: str, words: str) -> None:
        """Shows how far the task `name` is; another task replaces the one before.

        Args:
            done: the part that is done, in the unit of `total`.
            total: the whole; None if it is not known.
            count: both as words, with their unit.
            words: what else is to be said, such as the speed.
        """
        if self._task is None or self._task.description != name:
            self.close()
            number = self._live.add_task(
                name, total=total, completed=int(done), count=count, words=words
            )
            self._task = next(task for task in self._live.tasks if task.id == number)
            self._live.start()
        self._live.update(self._task.id, completed=done, total=total, count=count, words=words)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Shows that `what` is being compiled until the end of the block."""
        number = self._live.add_task(f"compiling {what}", total=None, count="", words="")
        self._live.start()
        try:
            yield
        finally:
            self._live.remove_task(number)
            if self._task is None:
                self._live.stop()
            else:  # only what follows tells how fast the task is
                self._live.reset(
                    self._task.id, completed=int(self._task.completed), **self._task.fields
                )

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Takes the bar off the terminal while a result is printed."""
        is_shown = self._live.live.is_started
        self._live.stop()
        yield
        if is_shown:
            self._live.start()

    def close(self) -> None:
        """Removes the bar."""
        if self._task is not None:
            self._live.remove_task(self._task.id)
            self._task = None
        self._live.stop()
