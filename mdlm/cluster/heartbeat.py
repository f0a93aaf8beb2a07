"""Watches the other processes of a run: which is lost, which gave up, and when all stop.

A thread of each process reads and writes the store that they share
(`mdlm.cluster.process_group`) once a second.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable

from mdlm.cluster import process_group

LOST = 4
"""Exit code after another process was lost."""
PERIOD = 1.0
"""Seconds between two reads of the store."""
SILENT = 10.0
"""Seconds without a heartbeat after which a process is suspected. That alone ends nothing."""
GRACE = 3.0
"""Seconds in which the others read which process was lost."""
PATIENCE = 15.0
"""Seconds in which the others end after one gave up."""

_current: "Heartbeat | None" = None


def current() -> "Heartbeat | None":
    """Returns the heartbeat of this process; None for a single process."""
    return _current


class Heartbeat(threading.Thread):
    """Tells the others that this process lives, and reads what they report.

    Reads the store once a `PERIOD`, for three purposes. If a process gives up, the others end too.
    A signal to one stops all at the same iteration (`Stop`). And if the collectives or the
    runtime's own heartbeats fail, a process that fell silent is known by its number. Silence alone
    ends nothing: this thread may be kept from running for a while.

    Args:
        advice: what to do after a process was lost; ends the message.
    """

    def __init__(self, group: process_group.ProcessGroup, advice: str = ""):
        super().__init__(name="heartbeat", daemon=True)
        self.group, self.advice = group, advice
        self.signal: int | None = None
        """The signal that this process received; set by `Stop.request`."""
        self.iteration: int | None = None
        """Number of the loop's latest iteration (see `Stop`)."""
        self.can_stop_at: int | None = None
        """The first iteration at which this process can stop, once told to the others."""
        self.stop_at: int | None = None
        """The iteration at which all stop."""
        self.stop_signal: int | None = None
        """The signal for which all stop."""
        self.silent: int | None = None
        """A process without a heartbeat for `SILENT` seconds."""
        self.on_suspicion: Callable[[bool], None] = lambda is_any: None
        """Called with True when `silent` becomes a number, with False when it is None again."""
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.ending = threading.Lock()
        self._has_sent_signal = False
        self._seen: dict[int, tuple[str, float]] = {}
        self._gave_up: dict[int, float] = {}
        self._beats = 0

    def run(self) -> None:
        while not self.closed.wait(PERIOD):
            try:
                self._exchange()
            except Exception:
                # The store is gone. Either process 0 is too, or the runtime has cut this process
                # off because of another one, which has been silent for long then.
                if not self.closed.wait(PERIOD):
                    self.end(LOST, self.lost_message(self.silent or 0))

    def start(self) -> None:
        global _current
        _current = self
        super().start()

    def close(self) -> None:
        """Ends the thread."""
        global _current
        _current = None
        self.closed.set()
        self.join()

    def lost_message(self, number: int) -> str:
        """Returns the message that process `number` was lost."""
        return f"process {number} was lost{self.advice}"

    def end(self, code: int, line: str) -> None:
        """Prints the reason and ends this process at once, from any thread."""
        self.ending.acquire()  # never released: the reason is printed once
        self.group.report(line)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)

    def give_up(self, code: int, line: str) -> None:
        """Tells the others that this process ends, and why. Process 0 then waits up to `PATIENCE`
        for all of them to end: they would take its own end for a loss."""
        group, until = self.group, time.monotonic() + PATIENCE
        with contextlib.suppress(Exception):
            group.put(f"gave_up/{group.index}", json.dumps([code, line]), overwrite=True)
            while group.index == 0 and len(group.entries("gave_up")) < group.count:
                if time.monotonic() > until:
                    break
                time.sleep(0.1)

    def end_if_process_lost(self) -> None:
        """Ends this process if another one caused an error here.

        Called after the error. Waits as long as it takes to suspect a process, and returns if none
        is.
        """
        until = time.monotonic() + SILENT + 2 * PERIOD
        while time.monotonic() < until:
            if self.silent is not None:
                if self.group.index == 0:
                    time.sleep(GRACE)  # the others read in the store here which one it is
                self.end(LOST, self.lost_message(self.silent))
            time.sleep(0.1)  # `_exchange` ends this process if one gave up or the store is gone

    def _exchange(self) -> None:
        group, now = self.group, time.monotonic()
        self._beats += 1
        group.put(f"alive/{group.index}", str(self._beats), overwrite=True)
        if group.index == 0:
            self._find_silent(now)
        notice = group.entries("notice")
        silent = int(notice["silent"]) if notice.get("silent") else None
        if (silent is None) != (self.silent is None):
            self.on_suspicion(silent is not None)
        self.silent = silent
        for number, text in group.entries("gave_up").items():
            if int(number) == group.index:
                continue
            since = self._gave_up.setdefault(int(number), now)
            if now - since > 2 * PERIOD:  # this process may be about to fail for the same reason
                code, line = json.loads(text)
                self.give_up(code, line)
                self.end(code, f"process {number} gave up: {line}")
        if self.signal is not None and not self._has_sent_signal:
            self._has_sent_signal = True
            with contextlib.suppress(Exception):  # another process was first
                group.put("notice/stop", str(self.signal))
        if "stop" in notice:
            self._agree_on_stop(notice)

    def _find_silent(self, now: float) -> None:
        """Announces the first process whose heartbeat has not changed for `SILENT` seconds."""
        for number, beat in self.group.entries("alive").items():
            before = self._seen.get(int(number))
            if before is None or before[0] != beat:
                self._seen[int(number)] = (beat, now)
        silent = [i for i, (_, since) in sorted(self._seen.items()) if now - since > SILENT]
        self.group.put("notice/silent", str(silent[0]) if silent else "", overwrite=True)

    def _agree_on_stop(self, notice: dict[str, str]) -> None:
        """Makes all stop at the first iteration that none of them has begun."""
        self.stop_signal = int(notice["stop"])
        with self.lock:
            is_new = self.can_stop_at is None and self.iteration is not None
            if self.can_stop_at is None and self.iteration is not None:
                self.can_stop_at = self.iteration + 1
        if is_new:
            self.group.put(f"can_stop_at/{self.group.index}", str(self.can_stop_at))
        if self.group.index == 0 and "stop_at" not in notice:
            answers = self.group.entries("can_stop_at")
            if len(answers) == self.group.count:
                self.group.put("notice/stop_at", str(max(map(int, answers.values()))))
        if "stop_at" in notice:
            self.stop_at = int(notice["stop_at"])


class Stop:
    """Decides when a loop stops: at the same iteration on all processes.

    After a signal to one process, each announces the next iteration, at which it can stop, and
    waits before that one until all have announced theirs. All stop at the last of these. The
    announcing is done by a thread, so that no process waits for another one that is itself waiting
    for the devices of the first. Without a signal an iteration costs no exchange.
    """

    def __init__(self):
        self._signal: int | None = None
        self.may_wait = False  # whether the loop runs, which stops in order
        self._heartbeat = _current

    def request(self, signal: int) -> None:
        """Makes all processes stop at one of the next iterations."""
        self._signal = signal
        if self._heartbeat is not None:
            self._heartbeat.signal = signal

    @property
    def requested_here(self) -> bool:
        """Whether the signal came to this process."""
        return self._signal is not None

    @property
    def signal(self) -> int | None:
        """The signal for which the run stops, the same on all processes."""
        return self._signal if self._heartbeat is None else self._heartbeat.stop_signal

    def now(self) -> bool:
        """Whether to stop now. Must be called once before each iteration."""
        heartbeat = self._heartbeat
        if heartbeat is None:
            return self._signal is not None
        with heartbeat.lock:
            iteration = 1 if heartbeat.iteration is None else heartbeat.iteration + 1
            heartbeat.iteration = iteration
            can_stop_at = heartbeat.can_stop_at
        while can_stop_at is not None and iteration >= can_stop_at and heartbeat.stop_at is None:
            time.sleep(0.02)
        return heartbeat.stop_at is not None and iteration >= heartbeat.stop_at
