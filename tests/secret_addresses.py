"""Where a program that XLA compiled lets a secret choose an address, a branch, or work that we do not know.

A reading of the text of the optimised HLO. Which machine code XLA makes of an operation it cannot see.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

# Operations that do the same work at the same addresses whatever their operands hold.
_STEADY = {
    *("add", "subtract", "multiply", "negate", "maximum", "minimum", "clamp", "compare", "and", "or", "xor", "not"),
    *("select", "convert", "bitcast", "bitcast-convert", "broadcast", "reshape", "transpose", "copy", "slice"),
    *("concatenate", "pad", "reverse", "reduce", "reduce-window", "opt-barrier"),
}
_WITHOUT_OPERANDS = {"constant", "iota", "partition-id", "replica-id"}
# Operation -> the operands that are indices.
_INDICES = {
    "gather": slice(1, None),
    "dynamic-slice": slice(1, None),
    "dynamic-update-slice": slice(2, None),
    "scatter": slice(1, 2),
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, (.*))?$")
_COMMENT = re.compile(r"/\*.*?\*/")

Secrecy = Any  # a bool, or a tuple of them for a tuple


class Instruction(NamedTuple):
    name: str
    operation: str
    operands: list[str]
    text: str  # what stands in the parentheses
    attributes: str
    is_root: bool

    def called(self, attribute: str) -> str:
        found = re.search(rf"\b{attribute}=%?([\w.-]+)", self.attributes)
        if found is None:
            raise ValueError(f"{self.operation} {self.name} has no {attribute}: {self.attributes}")
        return found[1]


def _parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The name of the entry computation, and the instructions of each."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in _COMMENT.sub("", text).splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current and line.startswith(" "):
            found = _INSTRUCTION.match(line)
            if found is None:
                raise ValueError(f"not read as an instruction: {line}")
            root, name, operation, operands, attributes = found.groups()
            names = re.findall(r"%([\w.-]+)", operands)
            computations[current].append(
                Instruction(name, operation, names, operands, attributes or "", root is not None)
            )
        elif line == "}":
            current = ""
    return entry, computations


class _Reading:
    def __init__(self, text: str, public: Sequence[str]) -> None:
        self.entry, self.computations = _parse(text)
        self.public = set(public)
        self.findings: set[str] = set()

    def entry_arguments(self) -> list[bool]:
        parameters = [i for i in self.computations[self.entry] if i.operation == "parameter"]
        names = {int(i.text): re.findall(r'op_name="([^"]*)"', i.attributes) for i in parameters}
        missing = self.public - {name for found in names.values() for name in found}
        if missing:
            raise ValueError(f"the program has no parameter {missing}")
        return [not set(names[index]) & self.public for index in range(len(names))]

    def run(self, computation: str, arguments: Sequence[Secrecy]) -> Secrecy:
        """Whether the result is secret."""
        values: dict[str, Secrecy] = {}
        result: Secrecy = False
        for instruction in self.computations[computation]:
            operands = [values[name] for name in instruction.operands]
            value = self.evaluate(instruction, operands, arguments)
            values[instruction.name] = value
            result = value if instruction.is_root else result
        return result

    def evaluate(self, i: Instruction, operands: list[Secrecy], arguments: Sequence[Secrecy]) -> Secrecy:
        match i.operation:
            case "parameter":
                return arguments[int(i.text)]
            case "tuple":
                return tuple(operands)
            case "get-tuple-element":
                (whole,) = operands
                index = re.search(r"index=(\d+)", i.attributes)
                return whole[int(index[1])] if isinstance(whole, tuple) and index else whole
            case "fusion":
                return self.run(i.called("calls"), operands)
            case "call":
                return self.run(i.called("to_apply"), operands)
            case "while":
                return self.loop(i, operands[0])
            case "custom-call":
                if any(map(_any, operands)) and 'custom_call_target="dhp_' not in i.attributes:
                    self.findings.add(f"{i.operation} on a secret")
                return any(map(_any, operands))
        return self.evaluate_steady(i, operands)

    def evaluate_steady(self, i: Instruction, operands: list[Secrecy]) -> Secrecy:
        if i.operation in _INDICES:
            if any(map(_any, operands[_INDICES[i.operation]])):
                self.findings.add(f"{i.operation} at a secret index")
        elif i.operation == "opt-barrier":
            return operands[0]
        elif i.operation not in _STEADY | _WITHOUT_OPERANDS and any(map(_any, operands)):
            self.findings.add(f"{i.operation} on a secret")
        return any(map(_any, operands))

    def loop(self, i: Instruction, carried: Secrecy) -> Secrecy:
        while True:
            if _any(self.run(i.called("condition"), [carried])):
                self.findings.add("while with a secret condition")
            joined = _join(carried, self.run(i.called("body"), [carried]))
            if joined == carried:
                return carried
            carried = joined


def _any(value: Secrecy) -> bool:
    return any(map(_any, value)) if isinstance(value, tuple) else value


def _join(x: Secrecy, y: Secrecy) -> Secrecy:
    return tuple(map(_join, x, y)) if isinstance(x, tuple) else x or y


def secret_addresses(compiled: Any, public: Sequence[str] = ()) -> set[str]:
    """What a compiled program does that may depend on a secret in another way than by its results.

    Every argument is secret but those whose paths, such as "position", are in `public`. An operation that is not
    known to be harmless counts as harmful.
    """
    reading = _Reading(compiled.as_text(), public)
    reading.run(reading.entry, reading.entry_arguments())
    return reading.findings
