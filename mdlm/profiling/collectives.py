"""What devices send to each other in a compiled program, read from its HLO text.

XLA prints a program as computations, lists of instructions; one of them is the entry, and loops
and fusions name others. An instruction counts as often as its computation is run: the trips of a
loop are read from its configuration, or from the comparison that ends it (`i < n`), the constant
that is added to `i`, and a start at 0. A loop whose trips cannot be read so is taken as one trip.

The bytes of a collective are those of the whole array that a device takes part in moving: what an
all-gather gives, and what any other takes. A device sends about as many, in an all-reduce twice
as many (a reduction, then a gathering).
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
"""Bits of the types whose name does not say it."""

ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count[^0-9]*"?n"?[^0-9]*([0-9]+)')


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Collectives of one kind in one run of a program: how many, and bytes on each device."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(count=self.count + other.count, bytes=self.bytes + other.bytes)


def collectives(text: str) -> dict[str, Traffic]:
    """Traffic by kind, of a program in HLO text as `compiled.as_text()` gives it."""
    found: dict[str, Traffic] = defaultdict(Traffic)
    for kind, _, traffic in met(text):
        found[kind] += traffic
    return dict(found)


def met(text: str) -> Iterator[tuple[str, Instruction, Traffic]]:
    """Each collective in the text of a program: its kind, its line, and its traffic in one run."""
    computations, roots, entry = parsed(text)
    # TPUs cut one collective into parts that are fused with other work. All parts show it, with
    # the same channel.
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
    """Bytes that a device sends in one run, about: those of all-reduces are sent twice."""
    return sum(t.bytes * times_sent(kind) for kind, t in traffic.items())


def times_sent(kind: str) -> int:
    """How often a device sends a collective's bytes, about: to add up, and to spread the sums."""
    return 2 if kind == "all-reduce" else 1


def size_of(type: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, by the text of its type."""
    total = 0
    for name, shape in ARRAY.findall(type):
        digits = re.search(r"[0-9]+", name)
        bits = BITS.get(name, int(digits[0]) if digits else 0)
        total += bits * math.prod(int(n) for n in shape.split(",") if n) // 8
    return total


def moved(kind: str, line: Instruction, computation: Computation) -> int:
    """Bytes of a collective, see above."""
    taken = sum(size_of(computation[name].type) for name in line.operands if name in computation)
    if kind != "all-gather":
        return taken
    # Begun apart from its end, it answers with what it took, too.
    return size_of(line.type) - (taken if line.opcode.endswith("-start") else 0)


def is_cut(root: str, computation: Computation) -> bool:
    """Whether a fused computation is an all-reduce of which a device keeps its part, which is how
    TPUs write a reduce-scatter."""
    line = computation.get(root)
    if line is None or line.opcode != "dynamic-slice":
        return False
    taken = computation.get(line.operands[0])
    return taken is not None and taken.opcode == "all-reduce"


def trips(line: Instruction, computations: dict[str, Computation], roots: dict[str, str]) -> int:
    """How often the body of a `while` runs."""
    if known := TRIPS.search(line.rest):
        return int(known[1])
    names = [re.search(rf"{part}=%?([\w.\-]+)", line.rest) for part in ("condition", "body")]
    condition, body = (computations.get(name[1], {}) if name else {} for name in names)
    end = condition.get(roots.get(names[0][1], "") if names[0] else "")
    result = body.get(roots.get(names[1][1], "") if names[1] else "")
    if end is None or result is None or "direction=LT" not in end.rest or len(end.operands) != 2:
        return 1
    counter, limit = (_through_copies(name, condition) for name in end.operands)
    place = re.search(r"index=([0-9]+)", counter.rest) if counter else None
    bound = _constant(limit)
    if place is None or bound is None or int(place[1]) >= len(result.operands):
        return 1
    stepped = _through_copies(result.operands[int(place[1])], body)
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
