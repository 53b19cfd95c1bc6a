"""What one instruction does to what is known of the registers.

A result is secret where anything that was read is secret: operands, addresses, the guard.

Public by rule, whatever was read: results of barriers, elections and register requests. They tell only how the
hardware scheduled warps; all that drives them (arrivals, counts, copies) is held to be public by rules CT02, CT03 and
CT06, which report any instruction of that sort under a secret guard or with a secret operand. In a kernel without
findings the condition therefore holds.

Lanes that exchange data may have come by different ways, and the states of different ways are kept apart (taint.py). So
what such an instruction reads is secret as soon as it is secret on any way to it.
"""

from __future__ import annotations

import dataclasses
import functools

from dhp_jax.verify import opcodes, pointers, registers
from dhp_jax.verify.instruction import Instruction, Kind, Operand
from dhp_jax.verify.memory import SHARED, Memory
from dhp_jax.verify.opcodes import Family
from dhp_jax.verify.program import Program
from dhp_jax.verify.registers import Used
from dhp_jax.verify.special import special_register
from dhp_jax.verify.state import Guard, State, any_lane, guard_of
from dhp_jax.verify.value import PUBLIC, Step, Value, originating

_STORES = ("STG", "ST", "STL", "STS", "STSM", "UBLKCP")
_EXCHANGES = (
    *("SHFL", "VOTE", "VOTEU", "REDUX", "MATCH", "R2UR"),
    *("MOVM", "LDSM", "HMMA", "IMMA", "DMMA", "HGMMA", "QGMMA", "IGMMA"),
)
_ALL_TRUE = 7  # the bit of a PLOP3 table for three true inputs


class Transfer:
    """The effect of instructions on states, in one program with one memory."""

    def __init__(self, program: Program, memory: Memory):
        self.program = program
        self.memory = memory

    def apply(self, instruction: Instruction, state: State) -> None:
        """Takes the effect of one instruction on a state, and on the memory."""
        guard = guard_of(instruction)
        constant = state.constant(guard[0]) if guard and not _writes_for_the_warp(instruction, guard) else None
        if instruction.never or (guard and constant is (not guard[1])):
            return
        if instruction.opcode in _STORES:
            self._store(instruction, state, guard)
        if instruction.opcode == "BAR" and "RED" in instruction.modifiers:
            self.memory.reduce(instruction, _joined([value for _, value in self._sources(instruction, state, guard)]))
        places = _places(instruction)
        if not places:
            return
        result = self._result(instruction, state, guard)
        decision = state.read(guard[0]) if guard and constant is None else PUBLIC
        for place in places:
            new = _arrived(instruction, place, result)
            if decision.secret is not None:
                kept = new.join(state.read(place))
                step = Step(instruction, place, "written or not", decision.secret)
                state.write(place, dataclasses.replace(kept, secret=kept.secret or step))
            else:
                if not decision.origins <= new.origins:
                    new = dataclasses.replace(new, origins=new.origins | decision.origins)
                self._write(state, place, new, None if constant is not None else guard)
        if guard is None:
            for said_by, said in _facts(instruction).items():
                state.learn(said_by, said)

    @staticmethod
    def _write(state: State, place: str, new: Value, guard: Guard | None) -> None:
        """A register of the warp is written for all its threads as soon as one of them has the guard."""
        if guard is not None and place.startswith("U") and not guard[0].startswith("U"):
            guard = any_lane(guard)
        state.write(place, new, guard)

    def _result(self, instruction: Instruction, state: State, guard: Guard | None) -> Value:
        match instruction.opcode:
            case "B2R":
                return self.memory.reduced()
            case "BSSY":
                return Value(constants=frozenset({self.program.label(instruction)}))
        family = opcodes.known(instruction)[0].family
        sources = self._sources(instruction, state, guard)
        joined = _joined([value for _, value in sources])
        if family is Family.BARRIER and "EXCH" not in instruction.modifiers:
            return originating("election" if instruction.opcode == "ELECT" else "wait")
        if family is Family.ATOMIC:
            return Value(Step(instruction, "", "memory, by an atomic", joined.secret))
        if _reads_memory(instruction):
            loaded = self.memory.load(instruction, pointer_at(instruction, -1, state))
            return dataclasses.replace(loaded, secret=loaded.secret or joined.secret)
        if instruction.opcode in ("PLOP3", "UPLOP3"):
            return dataclasses.replace(joined, constants=_constant_predicate(instruction))
        copy = pointers.copied(instruction, sources)
        return copy or Value(joined.secret, joined.origins, pointers.derived(instruction, sources))

    def _sources(self, instruction: Instruction, state: State, guard: Guard | None) -> pointers.Sources:
        """What the operands bring. Lanes that exchange data may have come by different ways."""
        sources = []
        for position, used in enumerate(registers.operands(instruction)):
            if not used.slot.destination:
                value = self._source(instruction, used, state, guard)
                if instruction.opcode in _EXCHANGES:
                    value = self.memory.exchange(instruction, position, value)
                sources.append((used.operand, value))
        return sources

    def _source(self, instruction: Instruction, used: Used, state: State, guard: Guard | None) -> Value:
        """What an operand brings; several registers are one number."""
        operand = used.operand
        match operand.kind:
            case Kind.IMMEDIATE:
                return PUBLIC if operand.value is None else Value(constants=frozenset({operand.value}))
            case Kind.SPECIAL:
                return special_register(instruction, operand.name)
            case Kind.BARRIER:
                return state.read(operand.name)
            case Kind.CONSTANT:
                parts = [self.memory.constant(instruction, operand, used.slot.count(instruction))]
            case Kind.BINDLESS:
                parts = [Value(Step(instruction, "", "a constant bank chosen at run time"))]
            case _:
                parts = []
        parts += [state.read(name, guard) for name in used.registers]
        value = parts[0] if parts else PUBLIC
        for part in parts[1:]:
            value = value.join(part)
        return value

    def _store(self, instruction: Instruction, state: State, guard: Guard | None) -> None:
        """Takes note of a secret that goes to memory: the last operand of a store, or what a copy takes from shared."""
        if instruction.opcode == "UBLKCP":
            secret: Step | None = Step(instruction, "", SHARED) if instruction.modifiers[0] == "G" else None
        else:
            secret = self._source(instruction, registers.operands(instruction)[-1], state, guard).secret
        if secret is not None:
            self.memory.store(instruction, pointer_at(instruction, 0, state), secret)


def _writes_for_the_warp(instruction: Instruction, guard: Guard) -> bool:
    """Whether lanes that have the guard write what lanes that have it not will read."""
    return not guard[0].startswith("U") and any(place.startswith("U") for place in _places(instruction))


def _reads_memory(instruction: Instruction) -> bool:
    """Whether what it computes depends on memory: it has such an operand. QSPC only asks about the address."""
    kinds = {operand.kind for operand in instruction.operands}
    return bool(kinds & {Kind.ADDRESS, Kind.MATRIX}) and instruction.opcode != "QSPC"


def pointer_at(instruction: Instruction, which: int, state: State) -> frozenset[str] | None:
    """What one of the addresses among the operands points into; `which` counts addresses only."""
    addresses = [pair for pair in opcodes.known(instruction)[1] if pair[1].kind is Kind.ADDRESS]
    if not addresses:
        return None
    slot, address = addresses[which]
    guard = guard_of(instruction)
    terms = registers.address_terms(slot, address, instruction)
    return pointers.addressed([[state.read(name, guard) for name in term] for term in terms])


@functools.lru_cache(maxsize=1 << 17)
def _places(instruction: Instruction) -> tuple[str, ...]:
    """All that an instruction writes: registers, predicates, convergence barriers."""
    destinations = [used.operand for used in registers.operands(instruction) if used.slot.destination]
    barriers = [operand.name for operand in destinations if operand.kind is Kind.BARRIER]
    return (*registers.effect(instruction).writes, *barriers)


def _facts(instruction: Instruction) -> dict[Guard, frozenset[Guard]]:
    """What the predicate that an instruction writes says of those that it was made from."""
    predicates = [operand for operand in instruction.operands if operand.kind is Kind.PREDICATE]
    match instruction.opcode, instruction.modifiers:
        case "VOTEU", ("ALL" | "ANY" as sort,) if len(predicates) == 2:
            result, voted = predicates
            some = any_lane((voted.name, voted.negated == (sort == "ALL")))
            return {(result.name, sort == "ANY"): frozenset({some})}
        case "PLOP3", ("LUT",):
            return _table_facts(instruction, predicates)
        case (("ISETP" | "FSETP"), modifiers) if "AND" in modifiers and "EX" not in modifiers:
            result, second, also = predicates
            if also.name not in (result.name, second.name):
                return {(result.name, True): frozenset({(also.name, not also.negated)})}
    return {}


def _table_facts(instruction: Instruction, predicates: list[Operand]) -> dict[Guard, frozenset[Guard]]:
    """What a PLOP3 with one destination says: the value that an input has in all rows of the table with this result."""
    result, second, *inputs = predicates
    table = instruction.operands[-2].value
    if second.name not in ("PT", "UPT") or table is None:
        return {}
    facts = {}
    for value in (True, False):
        rows = [row for row in range(8) if (table >> row & 1) == value and _possible(row, inputs)]
        said = set()
        for position, operand in enumerate(inputs):
            bits = {(row >> (2 - position) & 1) != operand.negated for row in rows}
            if len(bits) == 1 and operand.name not in ("PT", "UPT", result.name):
                said.add((operand.name, bits.pop()))
        facts[result.name, value] = frozenset(said)
    return facts


def _possible(row: int, inputs: list[Operand]) -> bool:
    """Whether a row of a PLOP3 table can be meant, its first input being the highest bit: PT is true."""
    return all(
        (row >> (2 - position) & 1) != operand.negated
        for position, operand in enumerate(inputs)
        if operand.name in ("PT", "UPT")
    )


def _joined(values: list[Value]) -> Value:
    """Secret where one is; what else was known of the values is gone."""
    secret = next((value.secret for value in values if value.secret), None)
    return Value(secret, frozenset().union(*(value.origins for value in values)))


def _constant_predicate(instruction: Instruction) -> frozenset[int] | None:
    """PLOP3 of three true inputs is how ptxas writes a constant. A second destination is left unknown."""
    *_, a, b, c, table, _ = instruction.operands
    second = instruction.operands[1].name
    if {a.text, b.text, c.text} <= {"PT", "UPT"} and second in ("PT", "UPT") and table.value is not None:
        return frozenset({table.value >> _ALL_TRUE & 1})
    return None


def _arrived(instruction: Instruction, place: str, value: Value) -> Value:
    """The value as it stands in `place`: this instruction becomes the last step of a secret's way."""
    if "P" in place and value.pointer is not None:
        value = dataclasses.replace(value, pointer=None)  # the carry of a sum points nowhere
    secret = value.secret
    if secret is None:
        return value
    if secret.instruction is instruction and not secret.place:
        secret = Step(instruction, place, secret.reason, secret.previous)
    else:
        secret = Step(instruction, place, "computed", secret)
    return Value(secret, value.origins, value.pointer, value.constants)
