"""What each instruction does to a State, and which rules it breaks.

Moves of 64-bit values are followed in detail, since compilers keep pointers in vector registers and on the stack; of
all else it is enough to know whether any input is secret.
"""

from __future__ import annotations

from collections.abc import Callable

from dhp_jax.verify.host import vectors
from dhp_jax.verify.host.elf import Elf
from dhp_jax.verify.host.rules import CONDITIONS, FIXED_LATENCY, FLOAT_MODES, VARIABLE_LATENCY
from dhp_jax.verify.host.state import RSP, State, lanes, read, write
from dhp_jax.verify.host.values import (
    ANYWHERE,
    CONSTANTS,
    COUNTERS,
    FIELDS,
    LOST,
    PARAMS,
    PLAN,
    PUBLIC,
    SECRET,
    STACK,
    Value,
    combine,
    difference,
    join,
    moved,
    moved_by,
    pointer,
)
from dhp_jax.verify.host.x86 import Flow, Instruction, Kind, Memory, Register

_RCX, _RBP, _RSI, _RDI = 1, 5, 6, 7
_RSP_REGISTER = Register(Kind.GENERAL, RSP, 8)

Report = Callable[[str, Instruction], None]  # rule and instruction


class Semantics:
    """Runs instructions on states, and reports the rules they break.

    Attributes:
      worked_on_secrets: addresses of instructions that a secret went into.
      stored_secrets: addresses of instructions that wrote a secret to memory of the caller.
    """

    def __init__(self, elf: Elf, report: Report):
        self._elf = elf
        self._report = report
        self.worked_on_secrets: set[int] = set()
        self.stored_secrets: set[int] = set()

    def step(self, instruction: Instruction, state: State) -> None:
        """Does what an instruction does, but for where execution goes next."""
        self._check(instruction, state)
        detailed = _DETAILED.get(instruction.name)
        followed = detailed is not None and detailed(self, instruction, state)
        if not followed and not self._move_vector(instruction, state):
            self._step_roughly(instruction, state)
        if state.general[RSP].secret or not state.general[RSP].is_stack or not state.general[RSP].exact:
            self._report("unfollowed-stack", instruction)
            state.general[RSP] = pointer(STACK)

    # Rules ----------------------------------------------------------------------------------------------------------

    def _check(self, instruction: Instruction, state: State) -> None:
        for memory in instruction.memory:
            if self.address(memory, state).secret:
                self._report("secret-address", instruction)
            elif _governed_by_secret(instruction, state):
                self._report("secret-mask", instruction)
        if instruction.name.endswith("_STRING") and any(state.general[r].secret for r in (_RCX, _RSI, _RDI)):
            self._report("secret-address", instruction)
        secret_input = any(value.secret for value in self._inputs(instruction, state))
        if instruction.flow is Flow.BRANCH:
            if secret_input:
                self._report("secret-branch", instruction)
        elif secret_input:
            self.worked_on_secrets.add(instruction.address)
            if instruction.name in VARIABLE_LATENCY:
                self._report("secret-latency", instruction)
            elif instruction.name not in FIXED_LATENCY and instruction.flow is Flow.NEXT:
                self._report("unlisted-instruction", instruction)
        if instruction.name in FLOAT_MODES:
            self._report("changed-mode", instruction)

    def _inputs(self, instruction: Instruction, state: State) -> list[Value]:
        """Everything that goes into the result, but for addresses."""
        values = [read(register, state) for register in instruction.reads]
        values += [v for m in instruction.memory if m.reads for v in self.load(m, state)]
        if state.secret_flags & instruction.reads_flags:
            values.append(SECRET)
        if instruction.mask and state.masks[instruction.mask]:
            values.append(SECRET)
        return values

    # Memory ---------------------------------------------------------------------------------------------------------

    def address(self, memory: Memory, state: State) -> Value:
        """The address of a memory operand."""
        if memory.is_local:
            return LOST
        if memory.base is None and memory.index is None:
            return pointer(CONSTANTS, memory.displacement)
        value = PUBLIC if memory.base is None else moved(state.general[memory.base.index], memory.displacement)
        if memory.index is None:
            return value
        if memory.index.kind is Kind.VECTOR:
            return moved_by(value, combine(lanes(memory.index, state)))
        index = state.general[memory.index.index]
        return moved_by(value, index if memory.scale == 1 else combine((index,)))

    def load(self, memory: Memory, state: State) -> list[Value]:
        """What is loaded, in pieces of 8 bytes."""
        address = self.address(memory, state)
        if memory.size == 0:
            return [SECRET]
        pieces = range(0, memory.size, 8)
        return [self._load_piece(moved(address, start), min(8, memory.size - start), state) for start in pieces]

    def _load_piece(self, address: Value, size: int, state: State) -> Value:
        region, offset = address.region, address.offset
        if address.secret or region in ("", ANYWHERE):
            return SECRET
        if region in (PARAMS, PLAN, COUNTERS):
            return PUBLIC
        if region == CONSTANTS:
            return PUBLIC if offset is not None and self._elf.is_constant(offset, size) else SECRET
        if offset is None or not address.exact:
            return LOST if region.startswith(FIELDS) else SECRET
        if region.startswith(FIELDS):
            letters = region.removeprefix(FIELDS)
            if size != 8 or offset % 8 or not 0 <= offset // 8 < len(letters):
                return LOST
            return argument(letters[offset // 8])
        return state.read_stack(region, offset, size)

    def store(self, instruction: Instruction, memory: Memory, state: State, values: list[Value]) -> None:
        """Writes pieces of 8 bytes, of which the last may be shorter."""
        address = self.address(memory, state)
        if not (address.is_stack and address.exact and address.offset is not None and memory.size):
            return self.write_block(instruction, state, address, combine(values))
        is_partial = bool(instruction.mask) or "MASKMOV" in instruction.name
        for value, start in zip(values, range(0, memory.size, 8), strict=True):
            size, offset = min(8, memory.size - start), address.offset + start
            old = [state.read_stack(address.region, offset, size)] if is_partial else []
            state.write_stack(address.region, offset, size, combine((value, *old)) if old else value)
        return None

    def write_block(self, instruction: Instruction, state: State, address: Value, value: Value) -> None:
        """Writes a value somewhere at or after an address: how far is not known."""
        if address.is_stack:
            state.forget_stack(address.region, address.offset)
        elif value.secret and address.region == PLAN:
            self._report("secret-plan", instruction)
        elif value.secret and address.region:
            self._report("unfollowed-write", instruction)
        elif value.secret:
            self.stored_secrets.add(instruction.address)
        if address.region == ANYWHERE:
            state.stack.clear()

    def _move_vector(self, instruction: Instruction, state: State) -> bool:
        """Follows an instruction that moves pieces of 8 bytes within and between vector registers."""
        if instruction.mask:
            return False
        loaded = tuple(v for m in instruction.memory if m.reads for v in self.load(m, state))
        moved_pieces = vectors.moved_pieces(instruction, state, loaded)
        if moved_pieces is None:
            return False
        target = instruction.operands[0] if instruction.operands else None
        if target is None:
            (memory,) = instruction.memory
            self.store(instruction, memory, state, list(moved_pieces))
        elif target.kind is Kind.GENERAL:
            state.general[target.index] = moved_pieces[0]
        else:
            written = instruction.writes[0].size // 8  # AVX clears the rest of the register, SSE keeps it
            padded = moved_pieces + (PUBLIC,) * (written - len(moved_pieces))
            state.vectors[target.index] = padded + state.vectors[target.index][written:]
        return True

    # Instructions ---------------------------------------------------------------------------------------------------

    def _step_roughly(self, instruction: Instruction, state: State) -> None:
        """The result is secret if any input is."""
        inputs = [] if _is_idiom(instruction) else self._inputs(instruction, state)
        result = combine(inputs)
        for register in instruction.writes:
            old = [read(register, state)] if instruction.keeps else []
            write(register, state, combine((result, *old)))
        for memory in instruction.memory:
            if memory.writes:
                self.store(instruction, memory, state, [result] * max(1, (memory.size + 7) // 8))
        self._write_flags(instruction, state, result)

    def _write_flags(self, instruction: Instruction, state: State, result: Value) -> None:
        if result.secret:
            state.secret_flags |= instruction.writes_flags
        elif instruction.name not in ("SHL", "SHR", "SAR", "ROL", "ROR"):  # by 0 they leave the flags
            state.secret_flags &= ~instruction.writes_flags

    def _source(self, instruction: Instruction, state: State, position: int) -> Value:
        """The 64-bit operand at a position: a register, memory that is loaded, or an immediate."""
        register = instruction.operands[position]
        if register is not None:
            return read(register, state)
        loaded = [v for m in instruction.memory if m.reads for v in self.load(m, state)]
        return loaded[0] if loaded else PUBLIC

    def _set_general(self, instruction: Instruction, state: State, value: Value) -> bool:
        """Writes the first operand if it is a whole register, and the flags."""
        target = instruction.operands[0]
        if target is None or target.kind is not Kind.GENERAL or target.size != 8:
            return False
        self._write_flags(instruction, state, combine(self._inputs(instruction, state)))
        state.general[target.index] = value
        return True

    def move(self, instruction: Instruction, state: State) -> bool:
        """Mov."""
        value = self._source(instruction, state, 1)
        if instruction.operands[0] is not None:
            return self._set_general(instruction, state, value)
        (memory,) = instruction.memory
        register = instruction.operands[1]
        if memory.size != 8 or register is None:
            return False
        self.store(instruction, memory, state, [value])
        return True

    def load_address(self, instruction: Instruction, state: State) -> bool:
        """Lea."""
        assert instruction.address_of is not None
        value = self.address(instruction.address_of, state)
        target = instruction.operands[0]
        assert target is not None
        state.general[target.index] = value if target.size == 8 else combine((value,))
        return True

    def add(self, instruction: Instruction, state: State) -> bool:
        """Add, inc, dec, and sub of a constant."""
        if instruction.operands[0] is None:
            return False
        value = self._source(instruction, state, 0)
        sign = -1 if instruction.name in ("SUB", "DEC") else 1
        if len(instruction.operands) == 1:
            return self._set_general(instruction, state, moved(value, sign))
        if instruction.immediate is not None:
            return self._set_general(instruction, state, moved(value, sign * instruction.immediate))
        other = self._source(instruction, state, 1)
        if sign < 0:
            same = instruction.operands[0] == instruction.operands[1]
            return self._set_general(instruction, state, PUBLIC if same else difference(value, other))
        return self._set_general(instruction, state, moved_by(value, other))

    def align(self, instruction: Instruction, state: State) -> bool:
        """And of the stack pointer, which opens a region of its own; any other and is rough."""
        if instruction.operands[0] != _RSP_REGISTER or instruction.immediate is None:
            return False
        region = f"{state.general[RSP].region}/{instruction.address:x}"
        state.drop_frame(region, 1 << 62)
        self._write_flags(instruction, state, PUBLIC)
        state.general[RSP] = pointer(region)
        return True

    def choose(self, instruction: Instruction, state: State) -> bool:
        """Cmov."""
        value = join(self._source(instruction, state, 0), self._source(instruction, state, 1))
        return self._set_general(instruction, state, SECRET if state.secret_flags & instruction.reads_flags else value)

    def push(self, instruction: Instruction, state: State) -> bool:
        """Push of a register, memory or a constant."""
        loaded = [v for m in instruction.memory if m.reads for v in self.load(m, state)]
        value = combine(loaded) if loaded else self._source(instruction, state, 0)
        state.general[RSP] = top = moved(state.general[RSP], -8)
        if top.offset is not None:
            state.write_stack(top.region, top.offset, 8, value)
            state.pushed[top.region, top.offset] = value
        return True

    def pop(self, instruction: Instruction, state: State) -> bool:
        """Pop of a register."""
        target = instruction.operands[0]
        if target is None:
            return False
        top = state.general[RSP]
        value = self._load_piece(top, 8, state)
        state.general[RSP] = moved(top, 8)
        state.general[target.index] = value
        return True

    def leave(self, instruction: Instruction, state: State) -> bool:
        """Leave: mov rsp, rbp and pop rbp."""
        frame = state.general[_RBP]
        state.general[_RBP] = self._load_piece(frame, 8, state)
        state.general[RSP] = moved(frame, 8)
        return True

    def fill_or_copy(self, instruction: Instruction, state: State) -> bool:
        """Stos and movs, with or without rep."""
        value = combine(self._inputs(instruction, state))
        self.write_block(instruction, state, state.general[_RDI], value)
        for register in instruction.writes:
            state.general[register.index] = moved_by(state.general[register.index], PUBLIC)
        return True

    def zero_upper(self, instruction: Instruction, state: State) -> bool:
        """Vzeroupper: keeps the lower 16 bytes of the first 16 vector registers."""
        for register in instruction.writes:
            state.vectors[register.index] = state.vectors[register.index][:2] + (PUBLIC,) * 6
        return True


def argument(letter: str) -> Value:
    """An argument of a task, by its letter in cuda/proof/kernel_tables.h."""
    return pointer({"p": PARAMS, "c": COUNTERS}[letter]) if letter in "pc" else PUBLIC


def _governed_by_secret(instruction: Instruction, state: State) -> bool:
    if instruction.mask and state.masks[instruction.mask]:
        return True
    if "MASKMOV" in instruction.name:
        register = instruction.operands[1]
        return register is None or read(register, state).secret
    if "GATHER" in instruction.name:  # of AVX2: its mask is the last operand
        register = instruction.operands[-1]
        return register is not None and read(register, state).secret
    return False


def _is_idiom(instruction: Instruction) -> bool:
    """Whether the result is a constant, whatever the operands hold."""
    name = instruction.name.removeprefix("V")
    registers = [r.index for r in instruction.operands if r is not None]
    same = len(set(registers)) == 1 and len(registers) >= 2 and not instruction.memory and not instruction.mask
    if name.startswith("PTERNLOG"):
        return not instruction.mask and instruction.immediate in (0, -1, 0xFF)
    return same and name.startswith("PCMPEQ") and all(r.kind is Kind.VECTOR for r in instruction.writes)


_DETAILED: dict[str, Callable[[Semantics, Instruction, State], bool]] = {
    "MOV": Semantics.move,
    "LEA": Semantics.load_address,
    "ADD": Semantics.add,
    "SUB": Semantics.add,
    "INC": Semantics.add,
    "DEC": Semantics.add,
    "AND": Semantics.align,
    "PUSH": Semantics.push,
    "POP": Semantics.pop,
    "LEAVE": Semantics.leave,
    "VZEROUPPER": Semantics.zero_upper,
    **{f"{stem}{size}_STRING": Semantics.fill_or_copy for stem in ("STOS", "MOVS") for size in "BWDQ"},
    **{f"CMOV{c}": Semantics.choose for c in CONDITIONS},
}
