"""Reads the timed region of a kernel out of its machine code, and checks that it times what its case says.

A probe is void, and the run fails, unless the opcode stands in the one loop between the two clock reads exactly as
often as the case claims, with a guard where it claims one and without where not.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence

_FUNCTION = re.compile(r"\s*Function : (\S+)\s*")
_INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w)\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*?)\s*;.*")
_TARGET = re.compile(r"0x[0-9a-f]+")
_TRANSFERS = ("BRA", "BRX", "CALL", "RET", "EXIT", "JMP", "BPT")


class VoidProbeError(Exception):
    """A kernel does not time what its case says."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of machine code: its guard, such as "@!P0" or "", its opcode with modifiers, and its operands."""

    address: int
    guard: str
    opcode: str
    operands: str


@dataclasses.dataclass(frozen=True)
class Region:
    """What runs between the two clock reads: the loop, and what stands around it once."""

    loop: tuple[Instruction, ...]
    around: tuple[Instruction, ...]

    def histogram(self) -> dict[str, int]:
        """How often each opcode stands in the loop, guards shown."""
        names = [f"{'@P ' if each.guard else ''}{each.opcode}" for each in self.loop]
        return dict(collections.Counter(names).most_common())


def cuobjdump() -> str:
    """The path of cuobjdump, from PATH or from a toolkit's usual place."""
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if not found:
        raise FileNotFoundError(
            "cuobjdump was not found on PATH or in /usr/local/cuda/bin, and probes whose machine code is unchecked are "
            "not run. Install the CUDA toolkit, or pip install nvidia-cuda-cuobjdump and put it on PATH."
        )
    return found


def disassemble(binary: pathlib.Path) -> dict[str, list[Instruction]]:
    """The instructions of every kernel in an executable or cubin."""
    listing = subprocess.run([cuobjdump(), "-sass", str(binary)], capture_output=True, text=True, check=True).stdout
    return parse(listing)


def parse(listing: str) -> dict[str, list[Instruction]]:
    """The kernels of a listing by cuobjdump."""
    kernels: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in listing.splitlines():
        if function := _FUNCTION.fullmatch(line):
            code = kernels.setdefault(function[1], [])
        elif match := _INSTRUCTION.fullmatch(line):
            code.append(Instruction(int(match[1], 16), match[2] or "", match[3], match[4]))
    return kernels


def region(code: Sequence[Instruction]) -> Region:
    """The timed region of a kernel.

    Raises:
        VoidProbeError: there are not two clock reads, or not exactly one loop between them.
    """
    clocks = [i for i, each in enumerate(code) if each.opcode.startswith("CS2R") and "SR_CLOCKLO" in each.operands]
    if len(clocks) != 2:
        raise VoidProbeError(f"{len(clocks)} clock reads; the timed region lies between two")
    timed = code[clocks[0] + 1 : clocks[1]]
    loops = [
        (_target(each), each.address) for each in _branches(timed) if timed[0].address <= _target(each) <= each.address
    ]
    if len(loops) != 1:
        raise VoidProbeError(f"{len(loops)} loops between the clock reads; the probe has one")
    (first, last) = loops[0]
    inside = tuple(each for each in timed if first <= each.address <= last)
    return Region(inside, tuple(each for each in timed if each not in inside))


def check(case: Mapping[str, object], kernels: Mapping[str, Sequence[Instruction]]) -> Region:
    """Holds a case, as the program lists it, against the machine code.

    Raises:
        VoidProbeError: the kernel is missing or times something else.
    """
    name = str(case["kernel"])
    if name not in kernels:
        raise VoidProbeError(f"{name}: no such kernel in the binary; build it again")
    try:
        timed = region(kernels[name])
        _check_count(case, timed)
        if not case["control"]:
            _check_flow(timed)
    except VoidProbeError as problem:
        raise VoidProbeError(f"{name}: {problem}") from None
    return timed


def _check_count(case: Mapping[str, object], timed: Region) -> None:
    opcode = re.compile(f"(?:{case['opcode']})( .*)?")
    found = [each for each in timed.loop if opcode.fullmatch(f"{each.opcode} {each.operands}")]
    as_said = [each for each in found if bool(each.guard) == case["guard_in_code"]]
    strays = 0 if case["guard_in_code"] else len(found) - len(as_said)
    if len(as_said) != case["in_code"] or strays:
        guards = "with" if case["guard_in_code"] else "without"
        raise VoidProbeError(
            f"{case['opcode']} {guards} guard stands {len(as_said)} times in the timed loop, the case says "
            f"{case['in_code']}; the loop has {timed.histogram()}"
        )


def _check_flow(timed: Region) -> None:
    transfers = [each.opcode for each in _branches(timed.loop)]
    if len(transfers) != 1:
        raise VoidProbeError(f"the timed loop has more control flow than its own branch: {transfers}")


def _branches(code: Sequence[Instruction]) -> Iterator[Instruction]:
    """All transfers of control but the waits for the copy engine: a barrier's phase, or the turn of an elected lane."""
    for before, each in zip([None, *code], code, strict=False):
        waits = each.opcode == "BRA.U.ANY" or (before is not None and before.opcode.startswith("SYNCS.PHASECHK"))
        if each.opcode.split(".")[0] in _TRANSFERS and not waits:
            yield each


def _target(branch: Instruction) -> int:
    found = _TARGET.findall(branch.operands)
    return int(found[-1], 16) if found else -1
