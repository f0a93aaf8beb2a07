"""What processes agree on, in threads around a store that stands for the coordination service."""

import json
import threading
import time

import numpy as np
import pytest

from mdlm.cluster import heartbeat, process_group
from mdlm.errors import InputError


class Store:
    """Text by name, as the client of the coordination service gives it."""

    def __init__(self):
        self.texts: dict[str, str] = {}
        self.lock = threading.Lock()

    def key_value_set(self, name: str, text: str, allow_overwrite: bool = False) -> None:
        with self.lock:
            if name in self.texts and not allow_overwrite:
                raise RuntimeError("ALREADY_EXISTS")
            self.texts[name] = text

    def key_value_dir_get(self, start: str) -> list[tuple[str, str]]:
        with self.lock:
            return [(k, v) for k, v in self.texts.items() if k.startswith(start)]

    def blocking_key_value_get(self, name: str, timeout_in_ms: int) -> str:
        return self.texts[name]  # who waits here for ever would hang the test


@pytest.fixture
def store():
    yield Store()
    process_group.enter(None)


def test_alone_everything_is_a_plain_call():
    assert process_group.present() is None and process_group.leads()
    assert process_group.told(lambda: 3) == 3 and process_group.agreed(2, sum) == 2
    process_group.check_same({"a": 1}, "values")
    stop = heartbeat.Stop()
    assert not stop.now()
    stop.ask(15)
    assert stop.now() and stop.signal == 15


def test_process_0_decides_and_the_others_are_told(store):
    process_group.enter(process_group.Party(store, 0, 2))
    assert process_group.leads() and process_group.told(lambda: {"exists": True}) == {
        "exists": True
    }
    with pytest.raises(InputError, match="not that folder"):
        process_group.told(lambda: _refuse("not that folder", 3))
    process_group.enter(process_group.Party(store, 1, 2))
    assert not process_group.leads() and process_group.told(lambda: "mine") == {"exists": True}
    with pytest.raises(InputError, match="not that folder") as refused:
        process_group.told(lambda: "mine")
    assert refused.value.exit_code == 3


def _refuse(words: str, code: int) -> None:
    error = InputError(words)
    error.exit_code = code
    raise error


def test_the_first_values_that_differ_are_named(store):
    others = {"train": {"steps": 20, "log_every": 7}, "seed": 1, "data": [1, 2], "e": 5, "f": 6}
    store.key_value_set("mdlm/exchange/0/1", json.dumps(others))
    store.key_value_set("mdlm/exchange/1/1", json.dumps(others))
    process_group.enter(process_group.Party(store, 0, 2))
    mine = {"train": {"steps": 20, "log_every": 5}, "seed": 0, "data": [1, 3]}
    with pytest.raises(InputError) as refused:
        process_group.check_same(mine, "values")
    assert str(refused.value) == (
        "process 1 has values that process 0 does not have: train.log_every is 7, not 5;"
        " seed is 1, not 0; data is [1, 2], not [1, 3] (and 2 more)"
    )
    process_group.check_same(others, "values")


@pytest.mark.parametrize("trial", range(12))
def test_all_stop_at_the_same_turn(store, monkeypatch, trial):
    """Whoever is asked, whenever, and however far apart the processes are: those that run ahead
    of the others, and those that wait for them in every turn."""
    monkeypatch.setattr(heartbeat, "PERIOD", 0.01)
    random = np.random.default_rng(trial)
    count, together = 3, threading.Barrier(3)
    looked = [heartbeat.Watch(process_group.Party(store, i, count)) for i in range(count)]
    stops = []
    for one in looked:
        monkeypatch.setattr(heartbeat, "_current", one)
        stops.append(heartbeat.Stop())
    pauses = random.exponential(0.004, (count, 4000))
    pauses[random.integers(count)] *= 4  # one is slower
    start = random.exponential(0.05, count)
    turns = [0] * count

    def process(i: int) -> None:
        time.sleep(start[i])
        while not stops[i].now():
            time.sleep(pauses[i, turns[i]])
            if trial % 2:
                together.wait(20)
            turns[i] += 1

    threads = [threading.Thread(target=process, args=(i,)) for i in range(count)]
    for thread in (*looked, *threads):
        thread.start()
    for who in random.permutation(count)[: 1 + trial % 3]:
        time.sleep(random.exponential(0.03))
        stops[who].ask(15 if who else 2)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), (turns, store.texts)
    for one in looked:
        one.close()
    assert len(set(turns)) == 1
    assert len({stop.signal for stop in stops}) == 1 and stops[0].signal in (2, 15)


@pytest.fixture
def clocked(store, monkeypatch):
    """Two watches that look when told to, by a clock that is set; and how they ended."""
    clock, ends = [0.0], []
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(heartbeat.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(heartbeat.Watch, "end", lambda self, *words: ends.append(words))
    pair = [heartbeat.Watch(process_group.Party(store, i, 2), "; start again") for i in range(2)]
    return clock, pair, ends


def test_a_silent_process_is_suspected_and_heard_again(clocked):
    clock, (first, second), ends = clocked
    told = []
    second.suspects = told.append
    for now in (0, 1):
        clock[0] = now
        second._look()
        first._look()
    clock[0] = 1 + heartbeat.SILENT + 1
    first._look()
    assert first.silent == 1 and not ends  # by itself that ends nothing
    second._look()
    assert second.silent == 1 and told == [True]
    first._look()
    second._look()
    assert first.silent is None and second.silent is None and told == [True, False]


def test_a_failure_here_is_explained_by_the_silence_of_another(clocked):
    clock, (first, second), ends = clocked
    second._look()
    first._look()
    clock[0] = heartbeat.SILENT + 1
    first._look()
    first.end = lambda *words: (ends.append(words), clock.__setitem__(0, 1e6))  # ends the waiting
    first.explain()
    assert ends == [(4, "process 1 was lost; start again")]


def test_a_process_that_gave_up_takes_the_others_with_it(clocked):
    clock, (first, second), ends = clocked
    second.give_up(2, "no such file")
    first._look()
    assert not ends  # it may have the same to say
    clock[0] = 2 * heartbeat.PERIOD + 1
    second._look()
    first._look()
    assert ends == [(2, "process 1 gave up: no such file")]
