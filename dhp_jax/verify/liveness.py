"""The life ranges that nvdisasm prints (``-plr``), and the check of our own table of reads and writes against them.

Each instruction has a row with one column a register: "^" written, "v" read, "x" both, ":" alive, " " not. Our table
(opcodes.py) and this independent account must name the same registers, on every instruction. Known gaps of the account,
each seen in the pinned nvdisasm and held by a test:

* R2P writes and P2R reads predicates; the account shows neither.
* Before sm_90 the text hides the descriptor of a global access; only the account names its uniform registers.
* A call stands for all that the calling convention lets it touch. We follow the call instead.
* The fill predicate of LDGSTS is read; the account says that it is written too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from dhp_jax.verify import registers
from dhp_jax.verify.instruction import Instruction
from dhp_jax.verify.verdict import UnverifiableError

_PREFIX = {"GPR": "R", "PRED": "P", "UGPR": "UR", "UPRED": "UP"}
_ROW = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*")
_SEPARATOR = "// |"
_CELL = re.compile(r"[^ :]")
_BESIDE = frozenset("|0123456789")  # what stands beside the columns: bars, and how many registers are alive


@dataclasses.dataclass(frozen=True)
class Life:
    """What nvdisasm says that one instruction reads and writes."""

    text: str
    reads: frozenset[str]
    writes: frozenset[str]


def parse(lines: Sequence[str]) -> dict[int, Life]:
    """The rows of one section, by address."""
    names: list[str] = []
    columns: dict[int, str] = {}  # register by position in the row
    rows: dict[int, Life] = {}
    for line in lines:
        text, separator, cells = line.partition(_SEPARATOR)
        if not separator:
            continue
        if "GPR" in cells:
            names = [cell.strip() for cell in cells.split("|")]
        elif "#" in cells:
            columns = _columns(names, cells)
        elif match := _ROW.fullmatch(text):
            rows[int(match[1], 16)] = _life(match[2], cells, columns)
    return rows


def _columns(names: list[str], cells: str) -> dict[int, str]:
    """A header such as ``  # 0123456789012  |  # 0123  |`` below the names of the register files."""
    columns: dict[int, str] = {}
    position = 0
    if len(names) != cells.count("|") + 1:
        raise _odd(cells)
    for name, cell in zip(names, cells.split("|"), strict=True):
        if "#" in cell:
            start = cell.index("#") + 2
            digits = cell[start:].rstrip()
            if name not in _PREFIX or digits != "".join(str(i % 10) for i in range(len(digits))):
                raise _odd(cells)
            columns |= {position + start + i: f"{_PREFIX[name]}{i}" for i in range(len(digits))}
        position += len(cell) + 1
    return columns


def _life(text: str, cells: str, columns: dict[int, str]) -> Life:
    if len(cells) <= max(columns, default=0):
        raise _odd(cells)
    marked: dict[str, set[str]] = {"v": set(), "^": set(), "x": set()}
    for cell in _CELL.finditer(cells):
        register, mark = columns.get(cell.start()), cell[0]
        if register is None and mark in _BESIDE:
            continue
        if register is None or mark not in marked:
            raise _odd(cells)
        marked[mark].add(register)
    both = marked["x"]
    return Life(" ".join(text.split()), frozenset(marked["v"] | both), frozenset(marked["^"] | both))


def check(instruction: Instruction, life: Life) -> Instruction:
    """Holds our table against nvdisasm's account of an instruction.

    Returns:
        The instruction, with the registers that its text does not show.

    Raises:
        UnverifiableError: the two disagree.
    """
    if instruction.text != life.text:
        raise _odd(f"{instruction.text} / {life.text}")
    effect = registers.effect(instruction)
    reads = {read.register for read in effect.reads}
    writes = set(effect.writes)
    hidden = _hidden_descriptor(instruction, life.reads - reads)
    if instruction.opcode == "CALL":
        agreed = reads <= life.reads
    elif instruction.opcode in ("P2R", "R2P"):
        agreed = life.reads <= reads and life.writes <= writes
    elif instruction.opcode == "LDGSTS":
        agreed = life.reads - hidden == reads and life.writes <= reads
    else:
        agreed = life.reads - hidden == reads and life.writes == writes
    if not agreed:
        raise UnverifiableError(
            f"{instruction.address:#06x}: for {instruction.text!r} the table says reads {sorted(reads)} and writes "
            f"{sorted(writes)}, nvdisasm says reads {sorted(life.reads)} and writes {sorted(life.writes)}",
            "One of the two is wrong; find out which before anything is claimed of this kernel.",
        )
    return dataclasses.replace(instruction, hidden=tuple(sorted(hidden))) if hidden else instruction


def _hidden_descriptor(instruction: Instruction, unexplained: frozenset[str]) -> frozenset[str]:
    """The uniform registers of a global access that the text does not show: an even one and the next."""
    addresses = instruction.address_operands
    if len(unexplained) == 2 and "E" in instruction.modifiers and addresses and not addresses[-1].has_descriptor:
        numbers = sorted(int(name[2:]) for name in unexplained if name.startswith("UR"))
        if len(numbers) == 2 and numbers[0] % 2 == 0 and numbers[1] == numbers[0] + 1:
            return unexplained
    return frozenset()


def _odd(row: str) -> UnverifiableError:
    return UnverifiableError(
        f"the life ranges of nvdisasm cannot be read: {row.strip()!r}", "verify/liveness.py must learn the row first."
    )
