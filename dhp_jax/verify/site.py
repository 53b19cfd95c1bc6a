"""One instruction that can be reached, with what is known before it: what a rule looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from dhp_jax.verify import opcodes, registers
from dhp_jax.verify.disassembly import Listed
from dhp_jax.verify.instruction import Instruction
from dhp_jax.verify.layout import Role
from dhp_jax.verify.memory import Memory
from dhp_jax.verify.opcodes import Admits, Family, Opcode
from dhp_jax.verify.policy import Policy
from dhp_jax.verify.registers import Read
from dhp_jax.verify.state import State, guard_of
from dhp_jax.verify.value import Step, Value


@dataclasses.dataclass(frozen=True)
class Site:
    """An instruction in one of the states in which it can be reached."""

    listed: Listed
    state: State
    memory: Memory
    policy: Policy

    @property
    def instruction(self) -> Instruction:
        """The instruction."""
        return self.listed.instruction

    @property
    def opcode(self) -> Opcode:
        """What the table knows of it."""
        return opcodes.known(self.instruction)[0]

    @property
    def idle(self) -> bool:
        """Whether its guard is known to fail here."""
        guard = guard_of(self.instruction)
        return self.instruction.never or (guard is not None and self.state.constant(guard[0]) is (not guard[1]))

    def value(self, read: Read) -> Value:
        """What a register that it reads holds; operands only count where the guard holds."""
        is_guard = read.operand < 0
        return self.state.read(read.register, None if is_guard else guard_of(self.instruction))

    @property
    def admits_guard(self) -> bool:
        """Whether a secret may be its guard."""
        by_policy = self.opcode.family is Family.ALU and bool(self.policy.guarded_arithmetic)
        return by_policy or self.opcode.admits is Admits.EVERYTHING

    def guard_secret(self) -> Step | None:
        """How the guard is secret, None where it is not."""
        guard = guard_of(self.instruction)
        return self.state.read(guard[0]).secret if guard else None

    def secrets(self, *roles: Role) -> Iterator[tuple[Read, Step]]:
        """The secret operands that play one of these roles, the guard not among them."""
        for read in registers.effect(self.instruction).reads:
            secret = self.value(read).secret
            if read.role in roles and read.operand >= 0 and secret is not None:
                yield read, secret
