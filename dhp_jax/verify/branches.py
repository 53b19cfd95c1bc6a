"""Tells the predicated branches of a kernel apart: the naive count and the truth.

A branch of its own is no leak; what it depends on decides. The sorts, for branches on public predicates:

* wait: for a barrier, a copy or registers; how often it repeats is up to the hardware's scheduling,
* loop: the test of a loop, on a public bound,
* exit: a thread without work leaves,
* role: which threads do this (thread index, election),
* guard: forward, on anything else that is public (parameters, block index).

A secret predicate makes the sort "secret", and is a finding.
"""

from __future__ import annotations

from dhp_jax.verify.instruction import Instruction, Kind
from dhp_jax.verify.program import falls_through
from dhp_jax.verify.site import Site
from dhp_jax.verify.value import PUBLIC, Value

_SPLITTING = ("BRA", "BRX", "EXIT", "RET", "CALL")

Labels = dict[str, int]
Loop = tuple[int, int]  # addresses of its first and its last instruction


def is_predicated(instruction: Instruction) -> bool:
    """Whether it is a branch or an exit that some threads take and some do not."""
    return instruction.opcode in _SPLITTING and not instruction.never and falls_through(instruction)


def sorts(sites: list[Site], labels: Labels) -> dict[int, str]:
    """The sort of every predicated branch, by address."""
    loops = _loops(sites, labels)
    conditions: dict[int, Value] = {}
    instructions: dict[int, Instruction] = {}
    for site in sites:
        if is_predicated(site.instruction):
            address = site.instruction.address
            instructions[address] = site.instruction
            conditions[address] = conditions.get(address, PUBLIC).join(_condition(site))
    return {
        address: _sort(instruction, conditions[address], loops, labels) for address, instruction in instructions.items()
    }


def _condition(site: Site) -> Value:
    names = [operand.name for operand in site.instruction.operands if operand.kind is Kind.PREDICATE]
    if site.instruction.guard is not None:
        names.append(site.instruction.guard.name)
    value = PUBLIC
    for name in names:
        if name not in ("PT", "UPT"):
            value = value.join(site.state.read(name))
    return value


def _sort(instruction: Instruction, condition: Value, loops: list[Loop], labels: Labels) -> str:
    if condition.secret is not None:
        return "secret"
    if "wait" in condition.origins:
        return "wait"
    if instruction.opcode == "EXIT":
        return "exit"
    if _tests_loop(instruction, loops, labels):
        return "loop"
    return "role" if condition.origins & {"thread", "election"} else "guard"


def _target(instruction: Instruction, labels: Labels) -> int | None:
    return next((labels.get(operand.name) for operand in instruction.operands if operand.kind is Kind.LABEL), None)


def _loops(sites: list[Site], labels: Labels) -> list[Loop]:
    """From the target of each backward branch to the branch: ptxas lays out a loop in one piece."""
    found = set()
    for site in sites:
        target = _target(site.instruction, labels) if site.instruction.opcode == "BRA" else None
        if target is not None and target <= site.instruction.address:
            found.add((target, site.instruction.address))
    return sorted(found, key=lambda loop: loop[1] - loop[0])


def _tests_loop(instruction: Instruction, loops: list[Loop], labels: Labels) -> bool:
    """A backward branch, or one that leaves the innermost loop around it."""
    target = _target(instruction, labels)
    if target is None:
        return False
    if target <= instruction.address:
        return True
    around = next((loop for loop in loops if loop[0] <= instruction.address <= loop[1]), None)
    return around is not None and target > around[1]
