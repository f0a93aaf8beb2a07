"""The collectives of a compiled program, read from its HLO text.

XLA prints a program as computations, which are lists of instructions. One of them is the entry;
loops and fusions call others. An instruction counts once per run of its computation. The trip
count of a loop is read from its configuration, or from the comparison that ends it (`i < n`) and
the constant that is added to `i`, with a start at 0. Without either, the trip count is taken as 1.

The bytes of a collective are those of the whole array: the output of an all-gather, and the input
of any other. A device sends about as many bytes, in an all-reduce twice as many (a reduce-scatter,
then an all-gather).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from mdlm.profiling.hlo import CALLED, Computation, Instruction, parsed

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BITS = {"pred": 8, "token": 0, "opaque": 0}
"""Bits of the types whose name does not contain them."""

ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count[^0-9]*"?n"?[^0-9]*([0-9]+)')


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Collectives of one kind in one run of a program: their number, and bytes on each device."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(count=self.count + other.count, bytes=self.bytes + other.bytes)


def collectives(text: str) -> dict[str, Traffic]:
    """Returns the traffic by kind of a program, from its HLO text (`compiled.as_text()`)."""
    found: dict[str, Traffic] = defaultdict(Traffic)
    for kind, _, traffic in met(text):
        found[kind] += traffic
    return dict(found)


def met(text: str) -> Iterator[tuple[str, Instruction, Traffic]]:
    """Yields each collective of a program: its kind, its instruction, and its traffic per run."""
    computations, roots, entry = parsed(text)
    # On TPUs one collective is split into parts that are fused with other work. All parts contain
    # it, with the same channel.
    seen: set[tuple[str, str]] = set()

    def visit(
        name: str, times: int, fused: bool = False
    ) -> Iterator[tuple[str, Instruction, Traffic]]:
        computation = computations.get(name, {})
        for line in computation.values():
            kind = line.opcode.removesuffix("-start")
            if kind in KINDS:
                if fused and line.channel is not None:
                    if (kind, line.channel) in seen:
                        continue
                    seen.add((kind, line.channel))
                size = moved(kind, line, computation)
                if kind == "all-reduce" and fused and is_cut(roots.get(name, ""), computation):
                    kind = "reduce-scatter"
                yield kind, line, Traffic(count=times, bytes=times * size)
            if line.opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", line.rest)
                assert body is not None
                yield from visit(body[1], times * trips(line, computations, roots))
                continue
            names = CALLED.findall(line.rest)
            for branches in BRANCHES.findall(line.rest):
                names += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for called in names:
                yield from visit(called, times, fused or line.opcode == "fusion")

    yield from visit(entry, 1)


def sent(traffic: dict[str, Traffic]) -> int:
    """Returns the approximate bytes that a device sends in one run; all-reduces count twice."""
    return sum(t.bytes * times_sent(kind) for kind, t in traffic.items())


def times_sent(kind: str) -> int:
    """Returns how often a device sends a collective's bytes: twice to reduce, then gather."""
    return 2 if kind == "all-reduce" else 1


def size_of(type: str) -> int:
    """Returns the bytes of an array, or of all arrays of a tuple, from the text of its type."""
    total = 0
    for name, shape in ARRAY.findall(type):
        digits = re.search(r"[0-9]+", name)
        bits = BITS.get(name, int(digits[0]) if digits else 0)
        total += bits * math.prod(int(n) for n in shape.split(",") if n) // 8
    return total


def moved(kind: str, line: Instruction, computation: Computation) -> int:
    """Returns the bytes of a collective, see the top of this file."""
    taken = sum(size_of(computation[name].type) for name in line.operands if name in computation)
    if kind != "all-gather":
        return taken
    # An asynchronous start returns its inputs too.
    return size_of(line.type) - (taken if line.opcode.endswith("-start") else 0)


def is_cut(root: str, computation: Computation) -> bool:
    """Returns whether a fused computation is an all-reduce and a slice of it per device, the form
    of a reduce-scatter on TPUs."""
    line = computation.get(root)
    if line is None or line.opcode != "dynamic-slice":
        return False
    taken = computation.get(line.operands[0])
    return taken is not None and taken.opcode == "all-reduce"


def trips(line: Instruction, computations: dict[str, Computation], roots: dict[str, str]) -> int:
    """Returns the trip count of a `while`."""
    if known := TRIPS.search(line.rest):
        return int(known[1])
    names = [re.search(rf"{part}=%?([\w.\-]+)", line.rest) for part in ("condition", "body")]
    condition, body = (computations.get(name[1], {}) if name else {} for name in names)
    end = condition.get(roots.get(names[0][1], "") if names[0] else "")
    result = body.get(roots.get(names[1][1], "") if names[1] else "")
    if end is None or result is None or "direction=LT" not in end.rest or len(end.operands) != 2:
        return 1
    counter, limit = (_through_copies(name, condition) for name in end.operands)
    index = re.search(r"index=([0-9]+)", counter.rest) if counter else None
    bound = _constant(limit)
    if index is None or bound is None or int(index[1]) >= len(result.operands):
        return 1
    stepped = _through_copies(result.operands[int(index[1])], body)
    if stepped is None or stepped.opcode != "add":
        return 1
    steps = [_constant(_through_copies(name, body)) for name in stepped.operands]
    step = next((step for step in steps if step), 1)
    return max(1, -(-bound // step))


def _through_copies(name: str, computation: Computation) -> Instruction | None:
    line = computation.get(name)
    while line is not None and line.opcode in ("copy", "bitcast") and line.operands:
        line = computation.get(line.operands[0])
    return line


def _constant(line: Instruction | None) -> int | None:
    whole = line is not None and line.opcode == "constant" and line.inside.isdecimal()
    return int(line.inside) if whole and line is not None else None
