"""The control-flow graph of a kernel: basic blocks and where each instruction can go on.

Indirect targets come from the analysis itself: the address that a RET or a BSYNC goes to is a constant that the code
put into a register, so taint.py carries constants along and asks here with what it knows. The targets of a jump table
are those that nvdisasm names. A target that stays unknown makes the kernel UNKNOWN, and so does code that no path
reaches: the graph would lack an edge.
"""

from __future__ import annotations

import functools

from dhp_jax.verify import opcodes
from dhp_jax.verify.cubin import Kernel
from dhp_jax.verify.disassembly import Listed
from dhp_jax.verify.instruction import SIZE, Instruction, Kind
from dhp_jax.verify.opcodes import Family
from dhp_jax.verify.state import State
from dhp_jax.verify.verdict import UnverifiableError

_ENDS_BLOCK = ("BRA", "BRX", "CALL", "RET", "EXIT", "BSYNC")


class Program:
    """The code of one kernel as a graph."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.labels = kernel.listing.labels
        self._by_address = {listed.instruction.address: listed for listed in kernel.listing.code}
        for listed in kernel.listing.code:
            _check_latency(listed)

    def at(self, address: int) -> Listed:
        """The instruction at an address."""
        if address not in self._by_address:
            raise UnverifiableError(f"no instruction at {address:#06x}", "The code goes on outside its section.")
        return self._by_address[address]

    def label(self, instruction: Instruction) -> int:
        """The address that the label among the operands stands for."""
        name = next(operand.name for operand in instruction.operands if operand.kind is Kind.LABEL)
        return self._address_of(name, instruction)

    @functools.cached_property
    def leaders(self) -> frozenset[int]:
        """Addresses at which a basic block begins."""
        starts = {0}
        for listed in self.kernel.listing.code:
            instruction = listed.instruction
            if instruction.opcode in _ENDS_BLOCK:
                starts.add(instruction.address + SIZE)
            if instruction.opcode in ("BRA", "CALL", "BSSY") and not is_indirect(instruction):
                starts.add(self.label(instruction))
            starts.update(self._address_of(name, instruction) for name in instruction.targets)
        return frozenset(starts)

    def block(self, start: int) -> list[Listed]:
        """The instructions from a leader up to the end of its block."""
        code = [self.at(start)]
        while code[-1].instruction.opcode not in _ENDS_BLOCK:
            following = code[-1].instruction.address + SIZE
            if following in self.leaders:
                break
            code.append(self.at(following))
        return code

    def successors(self, instruction: Instruction, state: State) -> list[int]:
        """Where execution can go on after the last instruction of a block.

        Args:
            instruction: the last of its block.
            state: what is known of the registers before it.
        """
        following = instruction.address + SIZE
        if instruction.never or instruction.opcode not in _ENDS_BLOCK:
            return [following]
        return [*self._targets(instruction, state), *([following] if falls_through(instruction) else [])]

    def _targets(self, instruction: Instruction, state: State) -> list[int]:
        match instruction.opcode:
            case "EXIT":
                return []
            case "BRX":
                return [self._address_of(name, instruction) for name in instruction.targets] or _unresolved(instruction)
            case "BRA" | "CALL" if not is_indirect(instruction):
                return [self.label(instruction)]
            case "RET" | "BSYNC":
                register = next(o.name for o in instruction.operands if o.kind in (Kind.REGISTER, Kind.BARRIER))
                known = state.read(register).constants
                if known and known <= self.leaders and self._counts_from_begin(instruction):
                    return sorted(known)
        return _unresolved(instruction)

    def _counts_from_begin(self, instruction: Instruction) -> bool:
        """Whether the targets of a return are counted from the begin of the kernel, whose name is its label."""
        return instruction.opcode != "RET" or self.label(instruction) == 0

    def check_reached(self, reached: set[int]) -> None:
        """Raises UnverifiableError where code is neither reached nor padding."""
        for listed in self.kernel.listing.code:
            instruction = listed.instruction
            if instruction.address not in reached and not self._is_padding(instruction):
                raise UnverifiableError(
                    f"{instruction.address:#06x}: no path leads to {instruction.text!r}; the graph lacks an edge",
                    "Build without functions that are never called; else verify/program.py must learn the edge.",
                )

    def _is_padding(self, instruction: Instruction) -> bool:
        is_jump = instruction.opcode == "BRA" and not instruction.guarded
        return instruction.opcode == "NOP" or (is_jump and self.label(instruction) == instruction.address)

    def _address_of(self, name: str, instruction: Instruction) -> int:
        if name not in self.labels:
            raise UnverifiableError(
                f"{instruction.address:#06x}: {instruction.text!r} leads out of the kernel's section",
                "Build the kernel in one piece, without separately compiled device functions.",
            )
        return self.labels[name]


def falls_through(instruction: Instruction) -> bool:
    """Whether execution can go on with the next instruction after one that ends a block."""
    if instruction.guarded or {"ANY", "DIV", "CONV"} & set(instruction.modifiers):
        return True
    return any(operand.kind is Kind.PREDICATE and operand.text not in ("PT", "UPT") for operand in instruction.operands)


def is_indirect(instruction: Instruction) -> bool:
    """Whether a branch or a call takes its target from a register."""
    return instruction.opcode in ("BRX", "RET") or (
        instruction.opcode == "CALL" and any(operand.kind is Kind.REGISTER for operand in instruction.operands)
    )


def _unresolved(instruction: Instruction) -> list[int]:
    raise UnverifiableError(
        f"{instruction.address:#06x}: nothing tells where {instruction.text!r} goes",
        "Avoid recursion, and calls through pointers that the compiler cannot see through.",
    )


def _check_latency(listed: Listed) -> None:
    """Holds the table to the scheduling bits: a fixed latency needs no scoreboard."""
    opcode, _ = opcodes.known(listed.instruction)
    if opcode.family is Family.ALU and listed.write_scoreboard is not None:
        raise UnverifiableError(
            f"{listed.instruction.address:#06x}: {listed.instruction.text!r} signals a scoreboard: no fixed latency",
            "Move the opcode out of the fixed-latency group of verify/opcodes.py for this architecture.",
        )
