"""Parses the text of a compiled program (HLO) into computations and instructions."""

import re
from dataclasses import dataclass

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r"\s([a-z][a-z0-9\-]*)\(")
CALLED = re.compile(r"\b(?:calls|to_apply|(?:true|false)_computation)=%?([\w.\-]+)")
FUSED = re.compile(r"\bcalls=%?([\w.\-]+)")
CHANNEL = re.compile(r"\bchannel_id=([0-9]+)")
OP_NAME = re.compile(r'\bop_name="([^"]*)"')


@dataclass(frozen=True)
class Instruction:
    """One line: opcode, text of the type, names of the operands, and the rest of the line."""

    opcode: str
    type: str
    operands: tuple[str, ...]
    rest: str
    inside: str  # the text between the parentheses

    @property
    def channel(self) -> str | None:
        return self._named(CHANNEL)

    @property
    def op_name(self) -> str | None:
        """The named scopes of the instruction: `jit(train_step)/.../attention/dot_general`."""
        return self._named(OP_NAME)

    @property
    def fused(self) -> str | None:
        """The name of the computation with the instructions of a fusion."""
        return self._named(FUSED)

    def _named(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.search(self.rest)
        return found and found[1]


Computation = dict[str, Instruction]


def parsed(text: str) -> tuple[dict[str, Computation], dict[str, str], str]:
    """Returns the computations by name, the name of each one's root, and the entry's name.

    Raises ValueError if the text has no entry.
    """
    computations: dict[str, Computation] = {}
    roots: dict[str, str] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif current and (start := INSTRUCTION.match(line)):
            opcode = OPCODE.search(line, start.end() - 1)
            if opcode is None:
                continue
            end = _closing(line, opcode.end())
            inside = line[opcode.end() : end]
            computations[current][start[2]] = Instruction(
                opcode=opcode[1],
                type=line[start.end() : opcode.start()],
                operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
                rest=line[end:],
                inside=inside,
            )
            if start[1]:
                roots[current] = start[2]
    if not entry:
        raise ValueError("the text has no ENTRY: must be the HLO text of a compiled program")
    return computations, roots, entry


def _closing(line: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one before `start`."""
    depth = 1
    for i in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[i], 0)
        if depth == 0:
            return i
    return len(line)
