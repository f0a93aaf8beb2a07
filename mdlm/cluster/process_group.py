"""The processes of one run: what they exchange and decide together.

What process 0 decides for all (does a folder hold a run? is it time to stop?) goes as text through
the key-value store of JAX's coordination service, which process 0 keeps. No device takes part, so
it works before there are devices and while they are busy. `mdlm.cluster.launch` makes a process a
member of the group; without a group there is one process, and each function here is a plain call.
`mdlm.cluster.heartbeat` finds processes that are lost and stops all together.

Every process must make the same exchanges in the same order: their number is their name.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mdlm.errors import InputError

FOREVER = 7 * 24 * 3600 * 1000
"""Milliseconds to wait for another process. If it is lost, the heartbeat ends the wait sooner."""
PREFIX = "mdlm/"


class ProcessGroup:
    """This process as one of many. There is at most one, see `current`.

    Args:
        client: of the coordination service (`jaxlib`'s).
        index: number of this process, from 0.
        count: number of processes.
        err: where errors are written (None: standard error).
    """

    def __init__(self, client: Any, index: int, count: int, err: Any = None):
        self.client, self.index, self.count, self.err = client, index, count, err or sys.stderr
        self.exchanges = 0

    def put(self, name: str, text: str, *, overwrite: bool = False) -> None:
        """Stores a text under a name."""
        self.client.key_value_set(PREFIX + name, text, allow_overwrite=overwrite)

    def get(self, name: str) -> str:
        """Returns the text under a name; waits until there is one."""
        return self.client.blocking_key_value_get(PREFIX + name, FOREVER)

    def entries(self, folder: str) -> dict[str, str]:
        """Returns the texts under all names that start with `folder/`, without waiting."""
        start = f"{PREFIX}{folder}/"
        return {k.removeprefix(start): v for k, v in self.client.key_value_dir_get(start)}

    def report(self, line: str) -> None:
        """Prints one line on standard error, with the number of this process unless it is 0."""
        number = f"process {self.index}: " if self.index else ""
        print(f"mdlm: {number}{line}", file=self.err, flush=True)


_group: ProcessGroup | None = None


def set_current(group: ProcessGroup | None) -> None:
    """Makes this process a member of a group, or with None a single process again."""
    global _group
    _group = group


def current() -> ProcessGroup | None:
    """Returns the group of this process; None for a single process."""
    return _group


def is_main() -> bool:
    """Whether this process prints and writes files for all: process 0."""
    return _group is None or _group.index == 0


def broadcast(decide: Callable[[], Any]) -> Any:
    """Returns on all processes what `decide` returns on process 0 (JSON values).

    An InputError of `decide` is raised on all.
    """
    return decide_together(None, lambda _: decide(), collect=False)


def decide_together(value: Any, decide: Callable[[list[Any]], Any], *, collect: bool = True) -> Any:
    """Returns on all processes what `decide` makes on process 0 of their values (JSON values).

    All wait until all have arrived. An InputError of `decide` is raised on all. Without `collect`
    no values are sent, and process 0 does not wait.
    """
    group = _group
    if group is None:
        return decide([value])
    name = f"exchange/{group.exchanges}"
    group.exchanges += 1
    if collect:
        group.put(f"{name}/{group.index}", json.dumps(value))
    if group.index == 0:
        values = []
        if collect:
            values = [json.loads(group.get(f"{name}/{i}")) for i in range(group.count)]
        try:
            answer = {"answer": decide(values)}
        except InputError as error:
            answer = {"refused": str(error), "code": error.exit_code}
        group.put(f"{name}/answer", json.dumps(answer))
    answer = json.loads(group.get(f"{name}/answer"))
    if "refused" in answer:
        error = InputError(answer["refused"])
        error.exit_code = answer["code"]
        raise error
    return answer["answer"]


def barrier() -> None:
    """Returns when all processes have called it."""
    decide_together(None, lambda _: None)


def check_same(values: Mapping[str, Any], what: str) -> None:
    """Compares values (JSON, nested by name) between all processes.

    Raises InputError on all processes if one differs from process 0. The message names the first
    values that differ, and `what` they are the values of.
    """

    def compare(all_values: list[Any]) -> None:
        first = _flat(all_values[0])
        for number, own in enumerate(map(_flat, all_values)):
            found = [
                f"{name} is {_short(own.get(name))}, not {_short(first.get(name))}"
                for name in dict.fromkeys([*first, *own])
                if own.get(name) != first.get(name)
            ]
            if found:
                more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
                raise InputError(
                    f"process {number} has other {what} than process 0:"
                    f" {'; '.join(found[:3])}{more}"
                )

    decide_together(values, compare)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Returns nested values in one dictionary, by dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(part, f"{name}.{key}" if name else key) for key, part in value.items())
    return {key: part for found in parts for key, part in found.items()}


def _short(value: Any) -> str:
    """Returns a value as text of at most 60 characters."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
