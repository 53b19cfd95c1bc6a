"""How many registers in a row an operand covers, by opcode and modifiers. Names are those that layouts use."""

from __future__ import annotations

import re
from collections.abc import Callable

from dhp_jax.verify.instruction import Instruction
from dhp_jax.verify.verdict import UnverifiableError

_SIZES = {"64": 2, "96": 3, "128": 4, "256": 8}

# Registers of A and B of one thread, by shape: mma.sync multiplies 16 x 8 tiles over k values.
_MATRIX = {
    ("HMMA", "1688", False): (2, 1),
    ("HMMA", "16816", False): (4, 2),
    ("HMMA", "1684", True): (2, 1),
    ("HMMA", "1688", True): (4, 2),
    ("IMMA", "16816", False): (2, 1),
    ("IMMA", "16832", False): (4, 2),
    ("DMMA", "884", False): (2, 2),
    ("DMMA", "8x8x4", False): (2, 2),
}
_GMMA_SHAPE = re.compile(r"64x(\d+)x\d+")


def _has(*names: str) -> Callable[[Instruction], int]:
    """Two registers where one of the modifiers is there, else one."""
    return lambda instruction: 2 if set(names) & set(instruction.modifiers) else 1


def _memory(instruction: Instruction) -> int:
    return next((_SIZES[modifier] for modifier in instruction.modifiers if modifier in _SIZES), 1)


def _matrices_moved(instruction: Instruction) -> int:
    return next((int(modifier) for modifier in instruction.modifiers if modifier in ("1", "2", "4")), 1)


def _types(instruction: Instruction) -> list[str]:
    return [modifier for modifier in instruction.modifiers if re.fullmatch(r"B?[FSU]\d+", modifier)]


def _converted(instruction: Instruction) -> int:
    """Destination of a conversion. F2F names both types, destination first; the others only what is not 32 bits."""
    types = _types(instruction)
    wide = {"F2F": types[:1] == ["F64"], "I2F": "F64" in types, "FRND": "F64" in types}
    return 2 if wide.get(instruction.opcode, bool({"S64", "U64"} & set(types))) else 1


def _unconverted(instruction: Instruction) -> int:
    """Source of a conversion."""
    types = _types(instruction)
    wide = {"F2F": types[1:] == ["F64"], "I2F": bool({"S64", "U64"} & set(types))}
    return 2 if wide.get(instruction.opcode, "F64" in types) else 1


def _matrix(instruction: Instruction, which: int) -> int:
    shape = (instruction.opcode, "".join(instruction.modifiers[:1]), "TF32" in instruction.modifiers)
    if shape not in _MATRIX:
        raise _unknown(instruction)
    return _MATRIX[shape][which]


def _accumulators(instruction: Instruction) -> int:
    """mma.sync: 16 x 8 sums over 32 lanes, 8 x 8 for doubles; float16 sums lie two in a register."""
    return 2 if instruction.opcode == "HMMA" and instruction.modifiers[1:2] == ("F16",) else 4


def _group_accumulators(instruction: Instruction) -> int:
    """wgmma: 64 x N sums over 128 threads."""
    match = _GMMA_SHAPE.fullmatch("".join(instruction.modifiers[:1]))
    if not match:
        raise _unknown(instruction)
    sums = int(match[1]) // 2
    return sums // 2 if instruction.modifiers[1:2] == ("F16",) else sums


def _dimensions(extra: int) -> Callable[[Instruction], int]:
    """Coordinates of a tensor copy, after `extra` words of shared-memory addresses."""

    def count(instruction: Instruction) -> int:
        named = [int(modifier[0]) for modifier in instruction.modifiers if re.fullmatch(r"\dD", modifier)]
        if len(named) != 1:
            raise _unknown(instruction)
        return extra + named[0]

    return count


def _bulk(end: int) -> Callable[[Instruction], int]:
    """A bulk copy names its ends as G (a 64-bit address) or S; S that data go to has its barrier beside it."""

    def count(instruction: Instruction) -> int:
        ends = [modifier for modifier in instruction.modifiers if modifier in ("G", "S")]
        if len(ends) != 2:
            raise _unknown(instruction)
        return 2 if ends[end] == "G" or end == 0 else 1

    return count


def _unknown(instruction: Instruction) -> UnverifiableError:
    return UnverifiableError(
        f"{instruction.address:#06x}: unknown size of operands in {instruction.text!r}",
        "Teach verify/widths.py how many registers its operands take.",
    )


BY_NAME: dict[str, Callable[[Instruction], int]] = {
    "d": _has("64"),
    "wide": _has("WIDE"),
    "addend": _has("WIDE", "HI"),
    "base": _has("E"),
    "mem": _memory,
    "special": lambda instruction: 1 if "32" in instruction.modifiers else 2,
    "moved": _matrices_moved,
    "to": _converted,
    "from": _unconverted,
    "a": lambda instruction: _matrix(instruction, 0),
    "b": lambda instruction: _matrix(instruction, 1),
    "c": _accumulators,
    "sums": _group_accumulators,
    "load": _dimensions(2),
    "store": _dimensions(1),
    "prefetch": _dimensions(0),
    "bulkto": _bulk(0),
    "bulkfrom": _bulk(1),
}
