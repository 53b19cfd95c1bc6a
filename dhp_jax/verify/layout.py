"""The small language in which opcodes.py writes down the operands of an opcode.

A layout reads ``destinations : sources``, each a list of slots ``<sort>[width][?][:role]``. Slots are filled from left
to right; one with "?" may be missing.

Sort: R a register; V a value (register, number, constant); P a predicate; I a number; A an address; C a constant to
load; D a memory descriptor; M matrix descriptors; L a label; S a special register; B a convergence barrier; K a
scoreboard; Q all predicates.
Width: how many registers in a row, a digit or a name of widths.py; 1 where nothing is said.
Role: what the operand decides (Role); an address for A, C, D and M, else data where nothing is said.
"""

from __future__ import annotations

import dataclasses
import enum
import re

from dhp_jax.verify import widths
from dhp_jax.verify.instruction import Instruction, Kind, Operand


class Role(enum.Enum):
    """What an operand decides."""

    DATA = "data"  # a value to compute with or to move
    ADDRESS = "address"  # where memory is touched
    LANE = "lane"  # which lane answers a shuffle
    GATE = "gate"  # whether work is done: the guard, or a predicate beside it
    FLOW = "flow"  # where or when execution goes on
    MEETING = "meeting"  # who meets whom at a barrier


_SORTS = {
    "R": (Kind.REGISTER,),
    "V": (Kind.REGISTER, Kind.IMMEDIATE, Kind.CONSTANT, Kind.BINDLESS),
    "P": (Kind.PREDICATE,),
    "I": (Kind.IMMEDIATE,),
    "A": (Kind.ADDRESS,),
    "C": (Kind.CONSTANT, Kind.BINDLESS),
    "D": (Kind.DESCRIPTOR,),
    "M": (Kind.MATRIX,),
    "L": (Kind.LABEL,),
    "S": (Kind.SPECIAL,),
    "B": (Kind.BARRIER,),
    "K": (Kind.SCOREBOARD,),
    "Q": (Kind.PREDICATES,),
}
_SLOT = re.compile(r"(?P<sort>[A-Z])(?P<width>\d|[a-z]\w*)?(?P<optional>\??)(?::(?P<role>\w+))?")


@dataclasses.dataclass(frozen=True)
class Slot:
    """One place for an operand."""

    sort: str
    width: str
    role: Role
    optional: bool
    destination: bool

    def takes(self, operand: Operand) -> bool:
        """Whether an operand of this sort belongs here."""
        return operand.kind in _SORTS[self.sort]

    def count(self, instruction: Instruction) -> int:
        """How many registers in a row the operand covers."""
        return int(self.width) if self.width.isdigit() else widths.BY_NAME[self.width](instruction)


def parse(text: str) -> tuple[Slot, ...]:
    """The slots of a layout, destinations first."""
    sides = zip(f" {text} ".split(" : "), (True, False), strict=True)
    return tuple(_slot(word, destination) for words, destination in sides for word in words.split())


def _slot(text: str, destination: bool) -> Slot:
    match = _SLOT.fullmatch(text)
    if not match or match["sort"] not in _SORTS:
        raise ValueError(f"{text!r} is no slot of a layout")
    default = Role.ADDRESS if match["sort"] in "ACDM" else Role.DATA
    role = Role(match["role"]) if match["role"] else default
    return Slot(match["sort"], match["width"] or "1", role, bool(match["optional"]), destination)


def pair(slots: tuple[Slot, ...], operands: tuple[Operand, ...]) -> tuple[tuple[Slot, Operand], ...] | None:
    """Each operand with its slot, in order; None where they do not fit."""
    left, paired = list(operands), []
    for slot in slots:
        if left and slot.takes(left[0]):
            paired.append((slot, left.pop(0)))
        elif not slot.optional:
            return None
    return None if left else tuple(paired)
