"""One run of many processes: what they tell each other, and agree on.

Whatever one process decides for all (does a folder hold a run? is it time to stop?) goes through
the key-value store of the coordination service, which process 0 keeps: text, between hosts; no
device takes part, so it works before there are any and while they are busy. `mdlm.cluster.launch`
makes a process a member; without it there is one process, and everything here is a plain call.
`mdlm.cluster.heartbeat` looks after those that are lost or asked to stop.

Every process makes the same exchanges in the same order: that order is what names them.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mdlm.errors import InputError

FOREVER = 7 * 24 * 3600 * 1000
"""Milliseconds to wait for a process that lives: one that does not ends the waiting otherwise."""
PREFIX = "mdlm/"


class Party:
    """This process among the others. There is one at most, see `present`.

    Args:
        client: of the coordination service (`jaxlib`'s).
        index: of this process.
        count: of all.
        err: where errors are written.
    """

    def __init__(self, client: Any, index: int, count: int, err: Any = None):
        self.client, self.index, self.count, self.err = client, index, count, err or sys.stderr
        self.exchanges = 0

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
    """What `decide` returns on process 0 (JSON values). Its InputError is raised by all."""
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


def compile_together(program: Any, *arguments: Any) -> None:
    """Returns when all processes have compiled a jitted program for these arguments.

    One that began to run it would wait for the others, and on CPUs only for half a minute.
    """
    if _party is not None:
        program.lower(*arguments).compile()  # JAX keeps it for the call that follows
        meet()


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
