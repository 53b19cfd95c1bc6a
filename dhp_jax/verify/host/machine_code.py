"""The machine-code check: takes the kernels out of a file, walks them, and judges what was found.

A kernel is a planning function, which the table in the file points to, and the phases that it plans, whose addresses
stand in its code. Nothing is run, so code for an instruction set that this processor lacks is judged too.

Assumed, beside what SECURITY.md assumes (memory safety, and no two arguments that overlap):

- what is written to an array on the stack stays in the frame of its function, and not below the address that its
  index is added to: an index is not negative;
- arrays of the caller lie neither on the stack of a kernel nor in its params or plan;
- iced-x86 describes the operands of instructions truly, and those that rules.py lists have a fixed latency;
- memcpy, memmove and memset do what their addresses and sizes say, whatever the bytes are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator

from dhp_jax.verify.host.controls import CONTROLS, missed
from dhp_jax.verify.host.driver import KERNELS
from dhp_jax.verify.host.elf import Elf
from dhp_jax.verify.host.rules import RULES
from dhp_jax.verify.host.semantics import argument
from dhp_jax.verify.host.state import State
from dhp_jax.verify.host.values import FIELDS, PARAMS, PLAN, pointer
from dhp_jax.verify.host.verdict import Finding, Result
from dhp_jax.verify.host.walk import Walk
from dhp_jax.verify.host.x86 import Decoder
from dhp_jax.verify.verdict import UnverifiableError, Verdict

EVIDENCE = "machine-code"
_LIBRARY_TABLE = "dhp_host_kernel_tables"
_ARGUMENTS = "dhp_host_task_arguments"
_CONTROL_TABLES = "dhp_host_controls_"

_RSI, _RDI = 6, 7
_ARGUMENT_REGISTERS = (_RDI, _RSI, 2, 1, 8, 9)  # of the System V calling convention
_POINTER = 8

# What breaks a promise; every other rule says that the check could not follow.
_LEAKS = {
    "secret-branch",
    "secret-address",
    "secret-mask",
    "secret-target",
    "secret-latency",
    "secret-plan",
    "foreign-call",
}


@dataclasses.dataclass(frozen=True)
class Kernels:
    """A struct HostKernels in a file: its name and the addresses of its planning functions."""

    name: str
    plans: dict[str, int]


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file: what was judged is this file and no other."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tables(elf: Elf) -> Iterator[Kernels]:
    """All kernels, or all controls, that a file exports.

    Raises:
      UnverifiableError: it exports none.
    """
    starts = [a for name, a in elf.symbols.items() if name == _LIBRARY_TABLE or name.startswith(_CONTROL_TABLES)]
    starts = [start for start in starts if start in elf.pointers]
    if not starts:
        raise UnverifiableError(
            f"{elf.path} exports no table of host kernels ({_LIBRARY_TABLE}); it must be libdhp_kernels or the driver "
            "dhp_host_proof of an installed dhp_jax"
        )
    for entry in starts:
        while entry in elf.pointers:
            yield _kernels(elf, elf.pointers[entry])
            entry += _POINTER


def _kernels(elf: Elf, address: int) -> Kernels:
    plans = {}
    for i, kernel in enumerate(KERNELS, start=1):  # in the order of struct HostKernels
        plan = elf.pointers.get(address + i * _POINTER)
        if plan is not None:
            plans[kernel] = plan
    return Kernels(elf.string(elf.pointers.get(address, 0)), plans)


def task_arguments(elf: Elf) -> str:
    """The arguments of a task, as cuda/proof/kernel_tables.h writes them.

    Raises:
      UnverifiableError: the file does not say, or says something else.
    """
    arguments = elf.string(elf.symbols[_ARGUMENTS]) if _ARGUMENTS in elf.symbols else ""
    if not re.fullmatch(r"([pnsc]|\{[pnsc]*\}){1,6}", arguments):
        raise UnverifiableError(
            f"{elf.path} says of the arguments of a task {arguments!r} ({_ARGUMENTS}); it must have one of the letters "
            "in cuda/proof/kernel_tables.h for each. Reinstall the package"
        )
    return arguments


def _task_state(arguments: str) -> State:
    """What a phase finds in its registers."""
    state = State()
    registers = iter(_ARGUMENT_REGISTERS)
    while arguments:
        if arguments[0] == "{":
            fields, _, arguments = arguments[1:].partition("}")
            value = pointer(FIELDS + fields)
        else:
            value, arguments = argument(arguments[0]), arguments[1:]
        state.general[next(registers)] = value
    return state


def _plan_state() -> State:
    """What a planning function finds: where to write the plan, and the params."""
    state = State()
    state.general[_RDI], state.general[_RSI] = pointer(PLAN), pointer(PARAMS)
    return state


def _planned_phases(elf: Elf, decoder: Decoder, walk: Walk) -> list[int]:
    """Addresses of functions that the code of a planning function names, in it or in constants it loads."""
    phases = set()
    for address in walk.visited:
        instruction = decoder.at(address)
        lea = instruction.address_of
        if lea is not None and lea.base is None and lea.index is None and elf.is_code(lea.displacement):
            phases.add(lea.displacement)
        for memory in instruction.memory:
            if memory.base is None and memory.index is None:
                for place in range(memory.displacement, memory.displacement + memory.size):
                    if elf.is_code(elf.pointers.get(place, -1)):
                        phases.add(elf.pointers[place])
    return sorted(phases)


def judge(elf: Elf, decoder: Decoder, kernels: Kernels, kernel: str, arguments: str) -> tuple[Result, set[int]]:
    """The verdict on one kernel, and the addresses of the instructions that it may execute.

    Raises:
      UnverifiableError: its code cannot be decoded.
    """
    plan = Walk(elf, decoder, kernels.plans[kernel], _plan_state())
    phases = _planned_phases(elf, decoder, plan)
    walks = [Walk(elf, decoder, phase, _task_state(arguments)) for phase in phases]
    findings = [
        Finding(Verdict.LEAK if rule in _LEAKS else Verdict.UNKNOWN, rule, f"{address:#x}", f"{text}: {RULES[rule]}")
        for walk in (plan, *walks)
        for (rule, address), text in sorted(walk.findings.items(), key=lambda item: item[0][1])
    ]
    visited = set[int]().union(*(walk.visited for walk in walks))
    on_secrets = len(set[int]().union(*(walk.semantics.worked_on_secrets for walk in walks)))
    stores = len(set[int]().union(*(walk.semantics.stored_secrets for walk in walks)))
    if not on_secrets or not stores:
        findings.append(
            Finding(Verdict.UNKNOWN, "nothing-secret", kernel, "no secret was seen to be read and written: no kernel")
        )
    detail = f"{len(phases)} phases, {len(visited)} instructions, of which {on_secrets} work on secrets"
    verdict = Verdict.of_all([Verdict.SAFE, *(finding.verdict for finding in findings)])
    return Result(kernels.name, kernel, EVIDENCE, verdict, detail, tuple(findings)), visited


def check(library: pathlib.Path, name: str) -> tuple[list[Result], set[int]]:
    """The verdicts on the kernels of one instruction set, and the addresses of all instructions they may execute.

    Raises:
      UnverifiableError: the file is not such a library, or iced-x86 is not installed.
    """
    elf = Elf(library)
    decoder, arguments = Decoder(elf), task_arguments(elf)
    found = [kernels for kernels in tables(elf) if kernels.name == name]
    if len(found) != 1 or found[0].plans.keys() != set(KERNELS):
        raise UnverifiableError(
            f"{library} has {found or 'nothing'} for {name}; it must have one plan for each of {', '.join(KERNELS)}. "
            "Reinstall the package"
        )
    judged = [judge(elf, decoder, found[0], kernel, arguments) for kernel in KERNELS]
    return [result for result, _ in judged], set[int]().union(*(visited for _, visited in judged))


def check_controls(program: pathlib.Path, library: pathlib.Path, name: str) -> list[Finding]:
    """The controls of one instruction set, in the driver, that were not reported as they must be.

    Raises:
      UnverifiableError: a file is not what it must be, or iced-x86 is not installed.
    """
    elf, arguments = Elf(program), task_arguments(Elf(library))
    decoder = Decoder(elf)
    broken: dict[str, set[str]] = {}
    for kernels in tables(elf):
        isa, _, control = kernels.name.partition(":")
        if isa == name:
            result, _ = judge(elf, decoder, kernels, "fwd", arguments)
            broken[control] = {finding.rule for finding in result.findings if finding.verdict is Verdict.LEAK}
    return list(_missed_controls(name, broken))


def _missed_controls(isa: str, broken: dict[str, set[str]]) -> Iterator[Finding]:
    for name, control in CONTROLS.items():
        if control.only in ("", isa) and not control.rules & broken.get(name, set()):
            reported = sorted(broken.get(name, ()))
            yield missed(name, f"one of {sorted(control.rules)} must be reported; reported was {reported}")
    for name in broken.keys() - CONTROLS.keys():
        yield missed(name, "controls.py does not know this control of the driver")
