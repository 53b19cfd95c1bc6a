"""Finds every cubin in a file: a cubin itself, a fatbin, or a library or program with fatbins inside.

A fatbin is a header and a chain of entries, each a cubin or PTX. Nothing may hide: the section that holds fatbins must
be read to its last byte, and cubins or fatbins elsewhere in the file are found by their magic numbers. PTX makes
the verdict UNKNOWN, since the driver may compile it into code that nobody has seen.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from dhp_jax.verify import elf
from dhp_jax.verify.verdict import UnverifiableError

_FATBIN = struct.Struct("<IHHQ")  # magic, version, header size, size of all entries
_ENTRY = struct.Struct("<HHIQ")  # sort, version, header size, payload size
_FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
_SECTIONS = (".nv_fatbin", "__nv_relfatbin")
_PTX, _CUBIN = 1, 2


def cubins(data: bytes) -> list[bytes]:
    """All cubins of a file, in order; raises UnverifiableError where there are none, or something else beside them."""
    if elf.machine(data) == elf.MACHINE_CUDA:
        return [data]
    found = list(_fatbins(data)) if data.startswith(_FATBIN_MAGIC) else list(_inside(data))
    if not found:
        raise UnverifiableError(
            "the file holds no GPU code", "Pass a cubin, a fatbin, or a library that was built with CUDA kernels."
        )
    return found


def _inside(data: bytes) -> Iterator[bytes]:
    """The cubins in a host file: those of its fatbin sections, and any that lie elsewhere."""
    host = elf.parse(data)
    rest = data
    for section in host.sections:
        if section.name in _SECTIONS:
            yield from _fatbins(section.data)
            rest = rest.replace(section.data, bytes(len(section.data)), 1)
    position = 0
    while (position := rest.find(_FATBIN_MAGIC, position)) >= 0:
        if _is_fatbin(rest, position):
            raise UnverifiableError(
                f"a fatbin lies at {position:#x}, outside the sections for them", "Link the kernels as nvcc does."
            )
        position += 1
    position = 0
    while (position := rest.find(elf.MAGIC, position)) >= 0:
        if elf.machine(rest, position) == elf.MACHINE_CUDA:
            yield rest[position : position + elf.parse(rest[position:]).size]
        position += 1


def _is_fatbin(data: bytes, start: int) -> bool:
    """Whether a header stands here; the magic number also occurs in code that looks for it."""
    if start + _FATBIN.size > len(data):
        return False
    _, version, header, size = _FATBIN.unpack_from(data, start)
    return version == 1 and header == _FATBIN.size and start + header + size <= len(data)


def _fatbins(data: bytes) -> Iterator[bytes]:
    """The cubins of fatbins that follow each other, with only zeros between them."""
    position = 0
    while position < len(data):
        if data[position : position + 4] == _FATBIN_MAGIC and _is_fatbin(data, position):
            _, _, header, size = _FATBIN.unpack_from(data, position)
            yield from _entries(data[position + header : position + header + size])
            position += header + size
        elif data[position] == 0:
            position += 1
        else:
            raise UnverifiableError(
                f"byte {position:#x} of the fatbin section belongs to no fatbin", "Link the file anew."
            )


def _entries(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        if position + _ENTRY.size > len(data):
            raise UnverifiableError("an entry of a fatbin is cut off", "Build the file again.")
        sort, _, header, size = _ENTRY.unpack_from(data, position)
        payload = data[position + header : position + header + size]
        if sort == _PTX:
            raise UnverifiableError(
                "the file holds PTX, which the driver may compile into other code",
                "Build for real architectures only: nvcc -gencode arch=compute_90a,code=sm_90a.",
            )
        if sort != _CUBIN or len(payload) != size or header < _ENTRY.size:
            raise UnverifiableError(
                f"an entry of a fatbin is of the unknown sort {sort}, or cut off", "Build the file again."
            )
        if elf.machine(payload) != elf.MACHINE_CUDA:
            raise UnverifiableError(
                "a cubin in the file is compressed",
                "Build with nvcc --compress-mode=none, or unpack it with cuobjdump -xelf all and pass the cubins.",
            )
        yield payload
        position += header + size
