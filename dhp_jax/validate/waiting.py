"""Which instructions wait for the hardware: they repeat as it pleases, and gate 1 leaves their executions out."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor

from dhp_jax.validate import gpu, proof
from dhp_jax.verify import UnverifiableError, image
from dhp_jax.verify import cubin as cubins
from dhp_jax.verify.__main__ import installed_library, own_policies
from dhp_jax.verify.report import Branch

# The second: a jump that is always taken, or where all threads end.
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(BRA(?= `\(\S+\) )|EXIT(?= ))?")
_LABEL = re.compile(r"([^\s:/]+):\s*")


@functools.cache
def waiting_loops() -> dict[str, frozenset[int]]:
    """Addresses of the instructions in loops that wait for the hardware, by kernel; none where nvdisasm is missing."""
    if proof.objection():
        return {}
    library, architecture = installed_library(), gpu.architecture()
    waits = [
        (report.symbol, branch)
        for report in proof.reports(library, own_policies(), fresh=False)
        for branch in report.branches
        if report.architecture == architecture and branch.sort == "wait"
    ]
    places = _places(library.read_bytes(), architecture, {symbol for symbol, _ in waits}) if waits else {}
    return loops(waits, places)


@dataclasses.dataclass(frozen=True)
class Places:
    """Addresses in the code of one kernel: of its labels, of the jumps that are always taken, of where threads end."""

    labels: Mapping[str, int]
    jumps: Set[int]
    exits: Set[int] = frozenset()


def loops(waits: Iterable[tuple[str, Branch]], places: Mapping[str, Places]) -> dict[str, frozenset[int]]:
    """From the label that each branch goes back to, to the branch itself, 16 bytes an instruction; by kernel.

    Code that only a jump can reach, when a first look found nothing to go on with, runs as often as that happens: of
    such a loop the jump that leads back is part.
    """
    found: dict[str, frozenset[int]] = {}
    for kernel, branch in waits:
        target = re.search(r"`\((\S+)\)", branch.instruction)
        own = places.get(kernel)
        begin = own.labels.get(target[1]) if own and target else None
        if own is None or begin is None or begin > branch.address:
            continue
        end = branch.address + 16
        if begin - 16 in own.jumps | own.exits and end in own.jumps:
            end += 16
        found[kernel] = found.get(kernel, frozenset()) | frozenset(range(begin, end, 16))
    return found


def _places(library: bytes, architecture: str, symbols: Set[str]) -> dict[str, Places]:
    ours = [data for data in image.cubins(library) if cubins.architecture(data) == architecture]
    ours = [data for data in ours if any(symbol.encode() in data for symbol in symbols)]  # to disassemble takes long
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            kernels = [kernel for found in pool.map(cubins.unread, ours) for kernel in found]
    except UnverifiableError:
        return {}
    return {k.kernel.symbol: places(k.section.lines) for k in kernels if k.kernel.symbol in symbols}


def places(listing: Iterable[str]) -> Places:
    """From what nvdisasm writes, of which no more is read: the proof takes a minute to read all of it."""
    labels: dict[str, int] = {}
    at: dict[str, set[int]] = {"BRA": set(), "EXIT": set()}
    end = 0
    for line in listing:
        if match := _INSTRUCTION.match(line):
            address = int(match[1], 16)
            end = address + 16
            if match[2]:
                at[match[2]].add(address)
        elif match := _LABEL.fullmatch(line):
            labels[match[1]] = end
    return Places(labels, at["BRA"], at["EXIT"])
