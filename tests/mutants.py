"""Leaks planted one at a time in the parsed code of kernels that have none."""

import dataclasses
import functools
import random
import re
from collections.abc import Iterator

import secret_registers

from dhp_jax.verify import instruction as sass
from dhp_jax.verify.cubin import Kernel
from dhp_jax.verify.instruction import Instruction, Kind, Operand

_MEMORY = ("LDG", "LDS", "LDSM", "LDGSTS", "STG", "STS", "STSM", "STAS", "LD", "ST")
_TENSOR = ("UTMALDG", "UTMASTG", "UTMAPF", "HGMMA")
_MAKES_UNIFORM = ("R2UR", "UMOV", "S2UR", "ULDC", "ULEA", "UIADD3", "USHF", "ULOP3")
_FLOW = ("BRA", "EXIT")
_FASTER_WHEN_OFF = ("FFMA", "FADD", "FMUL", "IMAD", "HFMA2", "HADD2", "VIADD", "MOV")
# Which rule speaks of a secret guard.
_GUARD_RULES = {
    **dict.fromkeys((*_FLOW, "WARPSYNC", "NANOSLEEP"), "CT01"),
    **dict.fromkeys((*_MEMORY, *_FASTER_WHEN_OFF, "LDC", "SHFL", "MUFU", "HMMA", "S2R", "HGMMA"), "CT03"),
    **dict.fromkeys(("BAR", "SYNCS", "USETMAXREG", "PREEXIT", "ACQBULK", "DEPBAR", "MEMBAR"), "CT06"),
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A kernel with one instruction changed.

    Attributes:
        sort: what was changed.
        original: the kernel before.
        instruction: the changed one, which takes the place of that at its address.
        change: before and after, for people.
        kills: (address, rule) of the findings that show that it was seen; empty where the verdict must be UNKNOWN.
    """

    sort: str
    original: Kernel
    instruction: Instruction
    change: str
    kills: frozenset[tuple[int, str]]

    @property
    def kernel(self):
        """The kernel with the change."""
        code = list(self.original.listing.code)
        position = self.instruction.address // sass.SIZE
        code[position] = dataclasses.replace(code[position], instruction=self.instruction)
        return dataclasses.replace(self.original, listing=dataclasses.replace(self.original.listing, code=tuple(code)))

    def killed_by(self, report):
        """Whether a report on the mutant shows that it was seen."""
        if not self.kills:
            return report.verdict.name == "UNKNOWN"
        found = {(finding.address, finding.rule) for finding in report.findings}
        return report.verdict.name == "LEAK" and bool(found & self.kills)


def mutants(kernel: Kernel, most: int) -> Iterator[Mutant]:
    """The mutants that these sorts of changes give at some instructions of a kernel, at most so many."""
    code = secret_registers.Code(kernel)
    positions = range(len(code.instructions))
    for position in sorted(random.Random(kernel.symbol).sample(positions, min(most, len(positions)))):
        if code.reached[position]:
            for plant in _PLANTS:
                yield from plant(code, position)


# The changes ----------------------------------------------------------------------------------------------------------


def _plant_guard(code: secret_registers.Code, position: int) -> Iterator[Mutant]:
    """A secret predicate guards something that is faster, or not done, where it is off."""
    instruction = code.instructions[position]
    rule = _GUARD_RULES.get(instruction.opcode)
    if rule is None or instruction.never or (instruction.opcode in _FLOW and not instruction.guarded):
        return
    sort = "branch predicate" if instruction.opcode in _FLOW else "guard"
    for name in code.secret_predicates(position):
        if instruction.guard is None or instruction.guard.name != name:
            guarded = _with(instruction, guard=Operand(Kind.PREDICATE, f"!{name}", name, negated=True))
            yield _changed(code, sort, position, guarded, [(instruction.address, rule)])


def _plant_branch_operand(code: secret_registers.Code, position: int) -> Iterator[Mutant]:
    """The second predicate of a branch becomes a secret one."""
    instruction = code.instructions[position]
    if instruction.opcode != "BRA":
        return
    for index, operand in enumerate(instruction.operands):
        if operand.kind is Kind.PREDICATE and operand.name not in ("PT", "UPT"):
            for name in code.secret_predicates(position):
                new = _with_operand(instruction, index, _renamed(operand, name))
                yield _changed(code, "branch predicate", position, new, [(instruction.address, "CT01")])


def _plant_address(code: secret_registers.Code, position: int) -> Iterator[Mutant]:
    """An address register becomes one that holds what was loaded."""
    instruction = code.instructions[position]
    if instruction.opcode not in _MEMORY or instruction.never:
        return
    for index, operand in enumerate(instruction.operands):
        if operand.kind is not Kind.ADDRESS:
            continue
        bases = [inner for inner in operand.inner if re.fullmatch(r"R\d+", inner.name)]
        for base in bases[:1]:
            wide = "64" in base.suffixes or "E" in instruction.modifiers
            for number in code.loaded(position):
                if number % 2 == 0 or not wide:
                    new = _with_operand(instruction, index, _rebased(operand, base, f"R{number}"))
                    yield _changed(code, "address", position, new, [(instruction.address, "CT02")])


def _plant_lane(code: secret_registers.Code, position: int) -> Iterator[Mutant]:
    """The lane of a shuffle becomes a register that holds what was loaded."""
    instruction = code.instructions[position]
    if instruction.opcode != "SHFL":
        return
    lane = 3  # SHFL predicate, destination, value, lane, bounds
    for number in code.loaded(position):
        new = _with_operand(instruction, lane, Operand(Kind.REGISTER, f"R{number}", f"R{number}"))
        yield _changed(code, "lane", position, new, [(instruction.address, "CT02")])


def _plant_comparison(code: secret_registers.Code, position: int) -> Iterator[Mutant]:
    """The comparison behind a guard or a branch compares something that was loaded."""
    instruction = code.instructions[position]
    if instruction.opcode not in ("ISETP", "FSETP") or instruction.guarded:
        return
    compared = 2  # ISETP two predicates, the two values, a third predicate
    for place in sorted(code.listed[position].life.writes):
        sort, kills = _first_use(code, position, place)
        if kills and instruction.operands[compared].kind is Kind.REGISTER:
            for number in code.loaded(position):
                new = _with_operand(instruction, compared, _register(f"R{number}"))
                yield _changed(code, sort, position, new, kills)


def _plant_coordinate(code: secret_registers.Code, position: int) -> Iterator[Mutant]:
    """What a tensor copy or a matrix product finds in a uniform register is taken from what was loaded."""
    instruction = code.instructions[position]
    if instruction.opcode not in _MAKES_UNIFORM:
        return
    for place in sorted(code.listed[position].life.writes):
        user = next((user for user in code.users(position, place) if _goes_by(user, place)), None)
        for number in code.loaded(position) if user else ():
            operands = (_register(place), _register(f"R{number}"))
            new = _with(instruction, guard=None, opcode="R2UR", modifiers=(), operands=operands)
            yield _changed(code, "coordinate", position, new, [(user.address, "CT02")])


def _goes_by(user: Instruction, place: str) -> bool:
    """Whether a tensor copy or a product finds its data by a uniform register. nvdisasm says that a product whose left
    operand is in registers reads four words; the first two would be of a left one in shared memory.
    """
    if user.opcode == "HGMMA" and user.operands[1].kind is Kind.REGISTER:
        first = int(user.operands[2].name.removeprefix("UR"))
        return place in (f"UR{first + 2}", f"UR{first + 3}")
    return user.opcode in _TENSOR


def _plant_stale(code: secret_registers.Code, position: int) -> Iterator[Mutant]:
    """The public value that overwrites a secret never comes, and the secret is used in its place."""
    instruction = code.instructions[position]
    for place in sorted(code.listed[position].life.writes):
        if code.is_tainted(position, place) and not instruction.guarded:
            _, kills = _first_use(code, position, place)
            if kills:
                yield _changed(code, "redefinition", position, _nothing(instruction), kills)


def _first_use(code: secret_registers.Code, position: int, register: str) -> tuple[str, list[tuple[int, str]]]:
    """Where a register that is written here first decides something, and which rule speaks of that."""
    for user in code.users(position, register):
        kills = [(user.address, rule) for rule in _rules_for(user, register)]
        if kills:
            return "branch predicate" if user.opcode in _FLOW else "guard", kills
    return "", []


def _rules_for(user: Instruction, register: str) -> Iterator[str]:
    """The rules that speak where an instruction uses a secret register, by the part that it plays there."""
    if user.guard is not None and user.guard.name == register and user.opcode in _GUARD_RULES:
        yield _GUARD_RULES[user.opcode]
    in_address = [inner for operand in user.operands if operand.kind is Kind.ADDRESS for inner in operand.inner]
    if user.opcode in _MEMORY and any(register in _words(inner) for inner in in_address):
        yield "CT02"


def _words(base: Operand) -> list[str]:
    match = re.fullmatch(r"(U?R)(\d+)", base.name)
    width = 2 if "64" in base.suffixes else 1
    return [f"{match[1]}{int(match[2]) + i}" for i in range(width)] if match else []


def _plant_unknown(code: secret_registers.Code, position: int) -> Iterator[Mutant]:
    """An opcode that nobody knows."""
    instruction = code.instructions[position]
    yield _changed(code, "opcode", position, _with(instruction, opcode=f"{instruction.opcode}Q"), ())


_PLANTS = (
    _plant_guard,
    _plant_branch_operand,
    _plant_address,
    _plant_lane,
    _plant_comparison,
    _plant_coordinate,
    _plant_stale,
    _plant_unknown,
)


def _changed(code: secret_registers.Code, sort: str, position: int, new: Instruction, kills) -> Mutant:
    """The mutant with `new` at this position."""
    change = f"{code.instructions[position].text}  ->  {new.text}"
    return Mutant(sort, code.kernel, new, change, frozenset(kills))


def _with(instruction: Instruction, **changes) -> Instruction:
    """The instruction with other parts, and the text that goes with them."""
    new = dataclasses.replace(instruction, **changes)
    guard = "" if new.guard is None else f"@{new.guard.text} "
    opcode = ".".join((new.opcode, *new.modifiers))
    return dataclasses.replace(new, text=f"{guard}{opcode} {', '.join(o.text for o in new.operands)}".strip())


def _with_operand(instruction: Instruction, index: int, operand: Operand) -> Instruction:
    operands = (*instruction.operands[:index], operand, *instruction.operands[index + 1 :])
    return _with(instruction, operands=operands)


def _renamed(operand: Operand, name: str) -> Operand:
    return dataclasses.replace(operand, name=name, text=operand.text.replace(operand.name, name, 1))


def _rebased(address: Operand, base: Operand, name: str) -> Operand:
    new = _renamed(base, name)
    inner = tuple(new if old is base else old for old in address.inner)
    return dataclasses.replace(address, inner=inner, text=address.text.replace(base.text, new.text, 1))


@functools.cache
def _register(name: str) -> Operand:
    return Operand(Kind.REGISTER, name, name)


def _nothing(instruction: Instruction) -> Instruction:
    return _with(instruction, guard=None, opcode="NOP", modifiers=(), operands=(), hidden=())
