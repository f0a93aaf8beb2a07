"""Looking after the other processes of a run: who is lost, who gave up, and when all stop.

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
"""Exit code where another process was lost."""
PERIOD = 1.0
"""Seconds between two looks at what the others say."""
SILENT = 10.0
"""Seconds without a sign of life after which a process is suspected. That alone ends nothing."""
GRACE = 3.0
"""Seconds in which the others read which process was lost."""
PATIENCE = 15.0
"""Seconds in which they end, where one gave up."""

_current: "Watch | None" = None


def current() -> "Watch | None":
    """The watch of this process; None where it is alone."""
    return _current


class Watch(threading.Thread):
    """Tells the others that this process lives, and hears what they have to say.

    Looks at the store once a `PERIOD`. Three things come of it: a process that gave up takes the
    others with it; a signal to one stops all at the same turn (`Stop`); and a process that fell
    silent is known by its number when the collectives, or the runtime's own heartbeats, have
    failed. Silence alone ends nothing: this thread may be kept from running for a while.

    Args:
        advice: what can be done when a process was lost.
    """

    def __init__(self, party: process_group.Party, advice: str = ""):
        super().__init__(name="watch", daemon=True)
        self.party, self.advice = party, advice
        self.signal: int | None = None
        """What this process was asked by; set by whoever handles signals."""
        self.turn: int | None = None
        """Turns of the loop that were begun (see `Stop`)."""
        self.posted: int | None = None
        """The first turn at which this process can still stop."""
        self.target: int | None = None
        """The turn at which all stop."""
        self.asked: int | None = None
        """The signal by which they do."""
        self.silent: int | None = None
        """A process that has given no sign of life for a while."""
        self.suspects: Callable[[bool], None] = lambda some: None
        """Told when `silent` becomes or ceases to be one."""
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.ending = threading.Lock()
        self._announced = False
        self._seen: dict[int, tuple[str, float]] = {}
        self._gave_up: dict[int, float] = {}
        self._beats = 0

    def run(self) -> None:
        while not self.over.wait(PERIOD):
            try:
                self._look()
            except Exception:
                # The store is gone, and process 0 with it, unless the runtime has cut us off
                # because of another, who has been silent for long then.
                if not self.over.wait(PERIOD):
                    self.end(LOST, self.loss(self.silent or 0))

    def start(self) -> None:
        global _current
        _current = self
        super().start()

    def close(self) -> None:
        """Ends the thread; from now on nobody watches."""
        global _current
        _current = None
        self.over.set()
        self.join()

    def loss(self, number: int) -> str:
        """The line on a process that was lost."""
        return f"process {number} was lost{self.advice}"

    def end(self, code: int, line: str) -> None:
        """Says why and ends this process at once, from whichever thread."""
        self.ending.acquire()  # and never releases it: it is said once
        self.party.says(line)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)

    def give_up(self, code: int, line: str) -> None:
        """Tells the others that this process ends, and why. Process 0, whose end they would take
        for a loss, waits until all of them end, for a while."""
        party, until = self.party, time.monotonic() + PATIENCE
        with contextlib.suppress(Exception):
            party.put(f"gave_up/{party.index}", json.dumps([code, line]), anew=True)
            while party.index == 0 and len(party.found("gave_up")) < party.count:
                if time.monotonic() > until:
                    break
                time.sleep(0.1)

    def explain(self) -> None:
        """Called when something failed here that may be another's doing: ends this process with
        the reason if one shows within the time that it takes to suspect a process."""
        until = time.monotonic() + SILENT + 2 * PERIOD
        while time.monotonic() < until:
            if self.silent is not None:
                if self.party.index == 0:
                    time.sleep(GRACE)  # the others hear from here who it is
                self.end(LOST, self.loss(self.silent))
            time.sleep(0.1)  # `_look` ends this process where another gave up, or the store is gone

    def _look(self) -> None:
        party, now = self.party, time.monotonic()
        self._beats += 1
        party.put(f"alive/{party.index}", str(self._beats), anew=True)
        if party.index == 0:
            self._count_the_living(now)
        word = party.found("word")
        silent = int(word["silent"]) if word.get("silent") else None
        if (silent is None) != (self.silent is None):
            self.suspects(silent is not None)
        self.silent = silent
        for number, text in party.found("gave_up").items():
            if int(number) == party.index:
                continue
            since = self._gave_up.setdefault(int(number), now)
            if now - since > 2 * PERIOD:  # this process may be about to say the same of itself
                code, line = json.loads(text)
                self.give_up(code, line)
                self.end(code, f"process {number} gave up: {line}")
        if self.signal is not None and not self._announced:
            self._announced = True
            with contextlib.suppress(Exception):  # another was first
                party.put("word/stop", str(self.signal))
        if "stop" in word:
            self._agree(word)

    def _count_the_living(self, now: float) -> None:
        for number, beat in self.party.found("alive").items():
            before = self._seen.get(int(number))
            if before is None or before[0] != beat:
                self._seen[int(number)] = (beat, now)
        silent = [i for i, (_, since) in sorted(self._seen.items()) if now - since > SILENT]
        self.party.put("word/silent", str(silent[0]) if silent else "", anew=True)

    def _agree(self, word: dict[str, str]) -> None:
        """Has all stop at the first turn that none of them has begun."""
        self.asked = int(word["stop"])
        with self.lock:
            says = self.posted is None and self.turn is not None
            if self.posted is None and self.turn is not None:
                self.posted = self.turn + 1
        if says:
            self.party.put(f"turn/{self.party.index}", str(self.posted))
        if self.party.index == 0 and "target" not in word:
            turns = self.party.found("turn")
            if len(turns) == self.party.count:
                self.party.put("word/target", str(max(map(int, turns.values()))))
        if "target" in word:
            self.target = int(word["target"])


class Stop:
    """Whether a loop is to stop, the same at the same turn on all processes.

    `signal` is set by whoever handles signals. A process that hears of one says which turn it can
    stop at, the next, and does not begin that before all have said theirs; the last of these turns
    is where they stop. What says it is a thread, so no process waits for one that is waiting for
    the devices of the first. Without a signal a turn costs no exchange.
    """

    def __init__(self):
        self._signal: int | None = None
        self._watch = _current

    def ask(self, signal: int) -> None:
        """Has all processes stop at one of the next turns."""
        self._signal = signal
        if self._watch is not None:
            self._watch.signal = signal

    @property
    def asked_here(self) -> bool:
        """Whether this process was asked."""
        return self._signal is not None

    @property
    def signal(self) -> int | None:
        """The signal by which the run was asked to stop: one for all."""
        return self._signal if self._watch is None else self._watch.asked

    def now(self) -> bool:
        """To be asked before each turn."""
        watch = self._watch
        if watch is None:
            return self._signal is not None
        with watch.lock:
            watch.turn = 1 if watch.turn is None else watch.turn + 1
            turn, waits = watch.turn, watch.posted is not None and watch.turn >= watch.posted
        while waits and watch.target is None:
            time.sleep(0.02)
        return watch.target is not None and turn >= watch.target
