"""Decodes x86-64 machine code into what the check needs: which registers and memory an instruction reads and writes.

The decoder is iced-x86, which knows the implicit operands of every instruction up to AVX-512, and how it uses each.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Any

from dhp_jax.verify.host.elf import Elf
from dhp_jax.verify.verdict import UnverifiableError

_LONGEST_INSTRUCTION = 15


class Kind(enum.Enum):
    """Sorts of register that are followed."""

    GENERAL = enum.auto()
    VECTOR = enum.auto()
    MASK = enum.auto()
    OTHER = enum.auto()  # x87, MMX, segments, control: nothing here should use them


@dataclasses.dataclass(frozen=True)
class Register:
    """A register, or its low `size` bytes."""

    kind: Kind
    index: int
    size: int


_Registers = tuple[Register, ...]


class Flow(enum.Enum):
    """Where execution goes after an instruction."""

    NEXT = enum.auto()
    JUMP = enum.auto()
    BRANCH = enum.auto()
    CALL = enum.auto()
    RETURN = enum.auto()
    INDIRECT_JUMP = enum.auto()
    INDIRECT_CALL = enum.auto()
    STOP = enum.auto()  # traps, system calls and all else that leaves the program


@dataclasses.dataclass(frozen=True)
class Memory:
    """A memory operand at base + index * scale + displacement.

    Attributes:
      base: general register, or None.
      index: general or vector register, or None.
      scale: 1, 2, 4 or 8.
      displacement: signed; the whole address where there is neither base nor index.
      size: bytes accessed; 0: not one fixed number.
      reads: whether it is loaded.
      writes: whether it is stored.
      is_local: whether it is thread-local: the address is that in another segment.
    """

    base: Register | None
    index: Register | None
    scale: int
    displacement: int
    size: int
    reads: bool
    writes: bool
    is_local: bool = False


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      address: where it lies.
      end: address of the one after it.
      text: as a person reads it.
      name: its mnemonic, in capitals, "LOCK " before it if it is locked; MOVSD_STRING and its like are not the vector
        instructions of that name.
      flow: where execution goes.
      target: address of a direct jump, branch or call.
      operands: its register operands by position; None where the operand is no register.
      immediate: its last immediate operand, sign-extended; None: it has none.
      reads: registers whose contents it uses, but for addresses.
      writes: registers it writes.
      keeps: whether what it writes may keep a part of the old contents.
      memory: memory that it accesses.
      address_of: the operand of a lea, which accesses nothing.
      mask: number of the mask register that governs its lanes; 0: none.
      reads_flags: bits of the flags it uses.
      writes_flags: bits of the flags it may change.
    """

    address: int
    end: int
    text: str
    name: str
    flow: Flow
    target: int
    operands: tuple[Register | None, ...]
    immediate: int | None
    reads: tuple[Register, ...]
    writes: tuple[Register, ...]
    keeps: bool
    memory: tuple[Memory, ...]
    address_of: Memory | None
    mask: int
    reads_flags: int
    writes_flags: int


@functools.cache
def _iced() -> Any:
    try:
        import iced_x86
    except ImportError as error:
        raise UnverifiableError(
            "the package iced-x86 is not installed, and the machine-code check decodes with it. Run "
            "`pip install iced-x86`, or install dhp_jax[verify]"
        ) from error
    return iced_x86


def _number_of(names: Any) -> dict[int, str]:
    return {value: name for name, value in vars(names).items() if isinstance(value, int)}


class Decoder:
    """Decodes the instructions of one file, each once."""

    def __init__(self, elf: Elf):
        self._elf = elf
        iced = self._iced = _iced()
        self._information = iced.InstructionInfoFactory()
        self._formatter = iced.Formatter(iced.FormatterSyntax.INTEL)
        self._mnemonics = _number_of(iced.Mnemonic)
        access, flow = iced.OpAccess, iced.FlowControl
        self._reading = (access.READ, access.COND_READ, access.READ_WRITE, access.READ_COND_WRITE)
        self._writing = (access.WRITE, access.COND_WRITE, access.READ_WRITE, access.READ_COND_WRITE)
        self._conditional = (access.COND_WRITE, access.READ_COND_WRITE)
        self._flows = {
            flow.NEXT: Flow.NEXT,
            flow.UNCONDITIONAL_BRANCH: Flow.JUMP,
            flow.CONDITIONAL_BRANCH: Flow.BRANCH,
            flow.CALL: Flow.CALL,
            flow.RETURN: Flow.RETURN,
            flow.INDIRECT_BRANCH: Flow.INDIRECT_JUMP,
            flow.INDIRECT_CALL: Flow.INDIRECT_CALL,
        }
        self._cache: dict[int, Instruction] = {}

    def at(self, address: int) -> Instruction:
        """The instruction at an address.

        Raises:
          UnverifiableError: there is none.
        """
        if address not in self._cache:
            self._cache[address] = self._decode(address)
        return self._cache[address]

    def _decode(self, address: int) -> Instruction:
        size = _LONGEST_INSTRUCTION
        while size and not self._elf.is_code(address + size - 1):
            size -= 1
        code = self._elf.read(address, size) if size else b""
        raw = self._iced.Decoder(64, code, ip=address).decode()
        if raw.is_invalid:
            raise UnverifiableError(
                f"{self._elf.path.name}: the bytes [{code.hex(' ')}] at {address:#x}, where execution may come, are no "
                "instruction"
            )
        return self._translate(raw)

    def _translate(self, raw: Any) -> Instruction:
        used = self._information.info(raw)
        size = self._iced.MemorySizeExt.size(raw.memory_size)
        bare = self._explicit_memory(raw)
        memory = [self._used_memory(m, self._iced.MemorySizeExt.size(m.memory_size)) for m in used.used_memory()]
        is_lea = raw.mnemonic == self._iced.Mnemonic.LEA
        if bare and not memory and not is_lea and used.used_registers():
            memory.append(dataclasses.replace(bare, size=size))  # a prefetch: an address, and no data
        reads, writes, keeps = self._used_registers(used, bare)
        return Instruction(
            address=raw.ip,
            end=raw.next_ip,
            text=self._formatter.format(raw),
            name=self._name(raw),
            flow=self._flows.get(raw.flow_control, Flow.STOP),
            target=raw.near_branch_target,
            operands=self._operands(raw),
            immediate=self._last_immediate(raw),
            reads=reads,
            writes=writes,
            keeps=keeps,
            memory=tuple(memory),
            address_of=bare if is_lea else None,
            mask=_register(raw.op_mask).index if raw.has_op_mask else 0,
            reads_flags=raw.rflags_read,
            writes_flags=raw.rflags_modified,
        )

    def _name(self, raw: Any) -> str:
        prefix = "LOCK " if raw.has_lock_prefix else ""
        return prefix + self._mnemonics[raw.mnemonic] + ("_STRING" if raw.is_string_instruction else "")

    def _used_registers(self, used: Any, bare: Memory | None) -> tuple[_Registers, _Registers, bool]:
        """Registers read as data, registers written, and whether a write may keep old contents."""
        pending = [r for r in (bare.base, bare.index) if r is not None] if bare else []
        reads, writes, keeps = [], [], False
        for item in used.used_registers():
            register = _register(item.register)
            if item.access in self._reading:
                if register in pending and item.access not in self._writing:
                    pending.remove(register)  # listed for the address
                else:
                    reads.append(register)
            if item.access in self._writing:
                writes.append(register)
                keeps |= item.access in self._conditional
                keeps |= register.kind is Kind.GENERAL and register.size < 4
        return tuple(reads), tuple(writes), keeps

    def _explicit_memory(self, raw: Any) -> Memory | None:
        kinds = [raw.op_kind(i) for i in range(raw.op_count)]
        if self._iced.OpKind.MEMORY not in kinds:
            return None
        none = self._iced.Register.NONE
        if raw.is_ip_rel_memory_operand:
            return Memory(None, None, 1, raw.ip_rel_memory_address, 0, False, False)
        base = _register(raw.memory_base) if raw.memory_base != none else None
        index = _register(raw.memory_index) if raw.memory_index != none else None
        return Memory(base, index, raw.memory_index_scale, _signed(raw.memory_displacement), 0, False, False)

    def _used_memory(self, used: Any, size: int) -> Memory:
        none = self._iced.Register.NONE
        return Memory(
            base=_register(used.base) if used.base != none else None,
            index=_register(used.index) if used.index != none else None,
            scale=used.scale,
            displacement=_signed(used.displacement),
            size=size,
            reads=used.access in self._reading,
            writes=used.access in self._writing,
            is_local=used.segment in (self._iced.Register.FS, self._iced.Register.GS),
        )

    def _operands(self, raw: Any) -> tuple[Register | None, ...]:
        is_register = [raw.op_kind(i) == self._iced.OpKind.REGISTER for i in range(raw.op_count)]
        return tuple(_register(raw.op_register(i)) if known else None for i, known in enumerate(is_register))

    def _last_immediate(self, raw: Any) -> int | None:
        last = raw.op_count - 1
        if last < 0 or raw.op_kind(last) not in _immediate_kinds():
            return None
        return _signed(raw.immediate(last))


@functools.cache
def _immediate_kinds() -> frozenset[int]:
    names = _number_of(_iced().OpKind)
    return frozenset(value for value, name in names.items() if name.startswith("IMMEDIATE"))


@functools.cache
def _register(number: int) -> Register:
    iced = _iced()
    full = iced.RegisterExt.full_register(number)
    size = iced.RegisterExt.size(number)
    if iced.RegisterExt.is_gpr(number):
        return Register(Kind.GENERAL, full - iced.Register.RAX, size)
    if iced.RegisterExt.is_vector_register(number):
        return Register(Kind.VECTOR, full - iced.Register.ZMM0, size)
    if iced.RegisterExt.is_k(number):
        return Register(Kind.MASK, number - iced.Register.K0, size)
    return Register(Kind.OTHER, number, size)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
