"""Decisions of many processes: threads that share a store instead of the coordination service."""

import json
import threading
import time

import numpy as np
import pytest

from mdlm.cluster import heartbeat, process_group
from mdlm.errors import InputError


class Store:
    """Text by name, with the methods of the client of the coordination service."""

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
        return self.texts[name]  # fails instead of waiting: a wait would hang the test


@pytest.fixture
def store():
    yield Store()
    process_group.set_current(None)


def test_in_a_single_process_everything_is_a_plain_call():
    assert process_group.current() is None and process_group.is_main()
    assert process_group.broadcast(lambda: 3) == 3 and process_group.decide_together(2, sum) == 2
    process_group.check_same({"a": 1}, "values")
    stop = heartbeat.Stop()
    assert not stop.now()
    stop.request(15)
    assert stop.now() and stop.signal == 15


def test_process_0_decides_for_all(store):
    process_group.set_current(process_group.ProcessGroup(store, 0, 2))
    assert process_group.is_main() and process_group.broadcast(lambda: {"exists": True}) == {
        "exists": True
    }
    with pytest.raises(InputError, match="not that folder"):
        process_group.broadcast(lambda: _refuse("not that folder", 3))
    process_group.set_current(process_group.ProcessGroup(store, 1, 2))
    assert not process_group.is_main() and process_group.broadcast(lambda: "mine") == {
        "exists": True
    }
    with pytest.raises(InputError, match="not that folder") as refused:
        process_group.broadcast(lambda: "mine")
    assert refused.value.exit_code == 3


def _refuse(message: str, code: int) -> None:
    error = InputError(message)
    error.exit_code = code
    raise error


def test_the_first_values_that_differ_are_named(store):
    others = {"train": {"steps": 20, "log_every": 7}, "seed": 1, "data": [1, 2], "e": 5, "f": 6}
    store.key_value_set("mdlm/exchange/0/1", json.dumps(others))
    store.key_value_set("mdlm/exchange/1/1", json.dumps(others))
    process_group.set_current(process_group.ProcessGroup(store, 0, 2))
    mine = {"train": {"steps": 20, "log_every": 5}, "seed": 0, "data": [1, 3]}
    with pytest.raises(InputError) as refused:
        process_group.check_same(mine, "values")
    assert str(refused.value) == (
        "process 1 has other values than process 0: train.log_every is 7, not 5;"
        " seed is 1, not 0; data is [1, 2], not [1, 3] (and 2 more)"
    )
    process_group.check_same(others, "values")


@pytest.mark.parametrize("trial", range(12))
def test_all_stop_at_the_same_iteration(store, monkeypatch, trial):
    """For any process that receives the signal, at any time; for processes that run ahead of the
    others, and for those that wait for them in every iteration."""
    monkeypatch.setattr(heartbeat, "PERIOD", 0.01)
    random = np.random.default_rng(trial)
    count, together = 3, threading.Barrier(3)
    beats = [heartbeat.Heartbeat(process_group.ProcessGroup(store, i, count)) for i in range(count)]
    stops = []
    for beat in beats:
        monkeypatch.setattr(heartbeat, "_current", beat)
        stops.append(heartbeat.Stop())
    pauses = random.exponential(0.004, (count, 4000))
    pauses[random.integers(count)] *= 4  # one process is slower
    start = random.exponential(0.05, count)
    iterations = [0] * count

    def process(i: int) -> None:
        time.sleep(start[i])
        while not stops[i].now():
            time.sleep(pauses[i, iterations[i]])
            if trial % 2:
                together.wait(20)
            iterations[i] += 1

    threads = [threading.Thread(target=process, args=(i,)) for i in range(count)]
    for thread in (*beats, *threads):
        thread.start()
    for number in random.permutation(count)[: 1 + trial % 3]:
        time.sleep(random.exponential(0.03))
        stops[number].request(15 if number else 2)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), (iterations, store.texts)
    for beat in beats:
        beat.close()
    assert len(set(iterations)) == 1
    assert len({stop.signal for stop in stops}) == 1 and stops[0].signal in (2, 15)


@pytest.fixture
def clocked(store, monkeypatch):
    """A clock that the test sets, two heartbeats without threads, and what ended them."""
    clock, ends = [0.0], []
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(heartbeat.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(heartbeat.Heartbeat, "end", lambda self, *reason: ends.append(reason))
    pair = [
        heartbeat.Heartbeat(process_group.ProcessGroup(store, i, 2), "; start again")
        for i in range(2)
    ]
    return clock, pair, ends


def test_a_silent_process_is_suspected_and_heard_again(clocked):
    clock, (first, second), ends = clocked
    suspicions = []
    second.on_suspicion = suspicions.append
    for now in (0, 1):
        clock[0] = now
        second._exchange()
        first._exchange()
    clock[0] = 1 + heartbeat.SILENT + 1
    first._exchange()
    assert first.silent == 1 and not ends  # silence alone ends nothing
    second._exchange()
    assert second.silent == 1 and suspicions == [True]
    first._exchange()
    second._exchange()
    assert first.silent is None and second.silent is None and suspicions == [True, False]


def test_an_error_is_blamed_on_a_silent_process(clocked):
    clock, (first, second), ends = clocked
    second._exchange()
    first._exchange()
    clock[0] = heartbeat.SILENT + 1
    first._exchange()
    first.end = lambda *reason: (ends.append(reason), clock.__setitem__(0, 1e6))  # ends the wait
    first.end_if_process_lost()
    assert ends == [(4, "process 1 was lost; start again")]


def test_all_end_after_one_gave_up(clocked):
    clock, (first, second), ends = clocked
    second.give_up(2, "no such file")
    first._exchange()
    assert not ends  # it may be about to fail for the same reason
    clock[0] = 2 * heartbeat.PERIOD + 1
    second._exchange()
    first._exchange()
    assert ends == [(2, "process 1 gave up: no such file")]
