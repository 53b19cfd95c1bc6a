"""Which registers an instruction reads and writes, by the table of opcodes.

nvdisasm says the same from its own knowledge (``-plr``); disassembly.py holds the two against each other on every
instruction.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator

from dhp_jax.verify import opcodes
from dhp_jax.verify.instruction import Instruction, Kind, Operand
from dhp_jax.verify.layout import Role, Slot

_NAME = re.compile(r"(U?[RP])(\d+)")
_ALL_PREDICATES = 0x7F


@dataclasses.dataclass(frozen=True)
class Read:
    """A register that an instruction reads, and what for. `operand` is its position; -1 is the guard."""

    register: str
    role: Role
    operand: int


@dataclasses.dataclass(frozen=True)
class Used:
    """One operand of an instruction in its slot, and all registers that it stands for."""

    slot: Slot
    operand: Operand
    registers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Effect:
    """What an instruction does to registers: those it reads, and those it writes."""

    reads: tuple[Read, ...]
    writes: tuple[str, ...]


@functools.lru_cache(maxsize=1 << 17)
def operands(instruction: Instruction) -> tuple[Used, ...]:
    """All operands of an instruction with their registers."""
    return tuple(
        Used(slot, operand, tuple(_covered(slot, operand, instruction)))
        for slot, operand in opcodes.known(instruction)[1]
    )


@functools.lru_cache(maxsize=1 << 17)
def effect(instruction: Instruction) -> Effect:
    """The registers that an instruction reads and writes: none, where its guard is constant false."""
    if instruction.never:
        return Effect((), ())
    reads: list[Read] = []
    writes: list[str] = []
    if instruction.guard is not None:
        reads += [Read(name, Role.GATE, -1) for name in _span(instruction.guard.name, 1)]
    for position, used in enumerate(operands(instruction)):
        if used.slot.destination:
            writes += used.registers
        else:
            reads += [Read(name, role, position) for name, role in _with_roles(instruction, used)]
    reads += [Read(name, Role.ADDRESS, len(instruction.operands) - 1) for name in instruction.hidden]
    return Effect(tuple(reads), tuple(writes))


def _with_roles(instruction: Instruction, used: Used) -> Iterator[tuple[str, Role]]:
    """The registers of an operand, with what each decides."""
    if used.operand.kind in (Kind.CONSTANT, Kind.BINDLESS):
        yield from ((name, Role.ADDRESS) for name in used.registers)
    elif used.operand.kind is Kind.MATRIX and instruction.operands[1].kind is Kind.REGISTER:
        # A comes from registers; the place of its descriptor, the first two of four, is not looked at.
        yield from zip(used.registers, (Role.DATA, Role.DATA, Role.ADDRESS, Role.ADDRESS), strict=True)
    else:
        yield from ((name, used.slot.role) for name in used.registers)


def _covered(slot: Slot, operand: Operand, instruction: Instruction) -> Iterator[str]:
    if operand.kind is Kind.ADDRESS:
        yield from _descriptor(operand)
        yield from (name for term in address_terms(slot, operand, instruction) for name in term)
    elif operand.kind in (Kind.REGISTER, Kind.PREDICATE, Kind.MATRIX, Kind.DESCRIPTOR):
        yield from _span(operand.name, slot.count(instruction))
    elif operand.kind in (Kind.CONSTANT, Kind.BINDLESS):
        for inner in operand.inner:
            yield from _span(inner.name, 2 if operand.kind is Kind.BINDLESS else 1)
    elif operand.kind is Kind.PREDICATES:
        yield from _predicates(operand, instruction)


def _descriptor(address: Operand) -> Iterator[str]:
    if address.has_descriptor:
        name = address.inner[0].name
        yield from _span(name, 1 if name[-1] in "13579" else 2)  # at an odd place it is a short one


def address_terms(slot: Slot, address: Operand, instruction: Instruction) -> Iterator[tuple[str, ...]]:
    """The numbers that add up to an address, each the registers that hold it.

    The first is as wide as the slot says, unless its suffix says else.
    """
    for position, register in enumerate(address.inner[address.has_descriptor :]):
        if "64" in register.suffixes:
            width = 2
        elif "U32" in register.suffixes or position > 0:
            width = 1
        else:
            width = slot.count(instruction)
        yield _span(register.name, width)


def _predicates(operand: Operand, instruction: Instruction) -> Iterator[str]:
    """All seven predicates as the bits of a register: only those in the mask, the last operand."""
    mask = instruction.operands[-1].value
    for bit in range(7):
        if (_ALL_PREDICATES if mask is None else mask) >> bit & 1:
            yield f"{operand.name.removesuffix('R')}{bit}"


@functools.lru_cache(maxsize=1 << 12)
def _span(name: str, count: int) -> tuple[str, ...]:
    match = _NAME.fullmatch(name)
    return tuple(f"{match[1]}{int(match[2]) + i}" for i in range(count)) if match else ()
