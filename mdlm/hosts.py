"""One run of many processes: what they tell each other, and how they end together.

Whatever one process decides for all (does a folder hold a run? is it time to stop?) goes through
the key-value store of the coordination service, which process 0 keeps: text, between hosts; no
device takes part, so it works before there are any and while they are busy. `mdlm.joining` makes a
process a member; without it there is one process, and everything here is a plain call.

Every process makes the same exchanges in the same order: that order is what names them.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from mdlm.types import InputError

LOST = 4
"""Exit code where another process was lost."""
PERIOD = 1.0
"""Seconds between two looks at what the others say."""
SILENT = 10.0
"""Seconds without a sign of life after which a process is suspected. That alone ends nothing."""
GRACE = 3.0
"""Seconds in which the others can read why a process ends."""
FOREVER = 7 * 24 * 3600 * 1000
"""Milliseconds to wait for a process that lives: one that does not ends the waiting otherwise."""
PREFIX = "mdlm/"


class Party:
    """This process among the others. There is one at most, see `present`.

    Args:
        client: of the coordination service (`jaxlib`'s).
        index: of this process.
        count: of all.
        advice: what to do when a process was lost.
        err: where errors are written.
    """

    def __init__(self, client: Any, index: int, count: int, advice: str = "", err: Any = None):
        self.client, self.index, self.count = client, index, count
        self.advice, self.err = advice, err or sys.stderr
        self.exchanges = 0
        self.watch = Watch(self)

    def put(self, name: str, text: str, *, anew: bool = False) -> None:
        self.client.key_value_set(PREFIX + name, text, allow_overwrite=anew)

    def get(self, name: str) -> str:
        """The text under a name, waiting until there is one."""
        return self.client.blocking_key_value_get(PREFIX + name, FOREVER)

    def found(self, folder: str) -> dict[str, str]:
        """All that stands below a name now."""
        start = f"{PREFIX}{folder}/"
        return {k.removeprefix(start): v for k, v in self.client.key_value_dir_get(start)}

    def says(self, line: str) -> None:
        """One line on standard error, with the number of a process that is not the first."""
        number = f"process {self.index}: " if self.index else ""
        print(f"mdlm: {number}{line}", file=self.err, flush=True)


_party: Party | None = None


def enter(party: Party | None) -> None:
    """Makes this process a member, or with None again one of its own."""
    global _party
    _party = party


def present() -> Party | None:
    """This process among the others; None where it is alone."""
    return _party


def leads() -> bool:
    """Whether this process speaks and writes for all."""
    return _party is None or _party.index == 0


def told(decide: Callable[[], Any]) -> Any:
    """What `decide` returns on process 0 (JSON values). An InputError it raises is raised by all."""
    return agreed(None, lambda _: decide(), collect=False)


def agreed(value: Any, judge: Callable[[list[Any]], Any], *, collect: bool = True) -> Any:
    """What `judge` makes, on process 0, of the values that all processes bring (JSON values).

    Nobody goes on before everybody came. An InputError of `judge` is raised by all. Without
    `collect` the values stay where they are, and process 0 waits for nobody.
    """
    party = _party
    if party is None:
        return judge([value])
    name = f"exchange/{party.exchanges}"
    party.exchanges += 1
    if collect:
        party.put(f"{name}/{party.index}", json.dumps(value))
    if party.index == 0:
        values = []
        if collect:
            values = [json.loads(party.get(f"{name}/{i}")) for i in range(party.count)]
        try:
            answer = {"answer": judge(values)}
        except InputError as error:
            answer = {"refused": str(error), "code": error.exit_code}
        party.put(f"{name}/answer", json.dumps(answer))
    answer = json.loads(party.get(f"{name}/answer"))
    if "refused" in answer:
        error = InputError(answer["refused"])
        error.exit_code = answer["code"]
        raise error
    return answer["answer"]


def meet() -> None:
    """Returns when all processes have come here."""
    agreed(None, lambda _: None)


def check_same(values: Mapping[str, Any], what: str) -> None:
    """InputError, on all processes, naming the first values (JSON, nested by name) in which a
    process differs from process 0. `what` they are the values of is part of the line."""

    def judge(all_values: list[Any]) -> None:
        first = _flat(all_values[0])
        for number, mine in enumerate(map(_flat, all_values)):
            found = [
                f"{name} is {_short(mine.get(name))}, not {_short(first.get(name))}"
                for name in dict.fromkeys([*first, *mine])
                if mine.get(name) != first.get(name)
            ]
            if found:
                more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
                raise InputError(
                    f"process {number} has {what} that process 0 does not have:"
                    f" {'; '.join(found[:3])}{more}"
                )

    agreed(values, judge)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(part, f"{name}.{key}" if name else key) for key, part in value.items())
    return {key: part for found in parts for key, part in found.items()}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Watch(threading.Thread):
    """Tells the others that this process lives, and hears what they have to say.

    Looks at the store once a `PERIOD`. Three things come of it: a process that gave up takes the
    others with it; a signal to one stops all at the same turn (`Stop`); and a process that fell
    silent is known by its number when the collectives, or the runtime's own heartbeats, have
    failed. Silence alone ends nothing: this thread may be kept from running for a while.
    """

    def __init__(self, party: Party):
        super().__init__(name="watch", daemon=True)
        self.party = party
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

    def close(self) -> None:
        """Ends the thread; from now on nobody watches."""
        self.over.set()
        self.join()

    def loss(self, number: int | None) -> str:
        """The line on a process that was lost."""
        who = "another process" if number is None else f"process {number}"
        return f"{who} was lost{self.party.advice}"

    def end(self, code: int, line: str) -> None:
        """Says why and ends this process at once, from whichever thread."""
        self.ending.acquire()  # and never releases it: it is said once
        self.party.says(line)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)

    def give_up(self, code: int, line: str) -> None:
        """Tells the others that this process ends, and why; process 0 lets them read it."""
        with contextlib.suppress(Exception):
            self.party.put(f"gave_up/{self.party.index}", json.dumps([code, line]))
            if self.party.index == 0:
                time.sleep(GRACE)

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
        self.silent = int(word["silent"]) if word.get("silent") else None
        for number, text in party.found("gave_up").items():
            if int(number) == party.index:
                continue
            since = self._gave_up.setdefault(int(number), now)
            if now - since > 2 * PERIOD:  # this process may be about to say the same of itself
                code, line = json.loads(text)
                if party.index == 0:
                    time.sleep(GRACE)
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
            post = self.posted is None and self.turn is not None
            if post:
                self.posted = self.turn + 1
        if post:
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
        self._watch = None if _party is None else _party.watch

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
