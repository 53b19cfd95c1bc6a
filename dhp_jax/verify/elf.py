"""ELF files, as far as a cubin or a shared library needs reading: sections and symbols."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

from dhp_jax.verify.verdict import UnverifiableError

MAGIC = b"\x7fELF"
MACHINE_CUDA = 190
TYPE_EXECUTABLE = 2
EXECUTABLE_FLAG = 0x4
NO_BITS = 8

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")


@dataclasses.dataclass(frozen=True)
class Section:
    """One section; `data` is empty where the file holds no bytes for it, of `size` bytes in memory."""

    index: int
    name: str
    flags: int
    size: int
    data: bytes

    @property
    def executable(self) -> bool:
        """Whether it holds machine code."""
        return bool(self.flags & EXECUTABLE_FLAG)


@dataclasses.dataclass(frozen=True)
class Symbol:
    """One symbol; `section` is the index of the section it lies in."""

    name: str
    kind: int
    other: int
    section: int
    value: int
    size: int


@dataclasses.dataclass(frozen=True)
class Elf:
    """A parsed 64-bit little-endian ELF file; `size` is where its last part ends."""

    machine: int
    type: int
    size: int
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    def section(self, name: str) -> Section | None:
        """The section of that name, None where there is none."""
        return next((section for section in self.sections if section.name == name), None)

    def data(self, name: str) -> bytes:
        """The bytes of the section of that name, none where it does not exist."""
        section = self.section(name)
        return section.data if section else b""


def machine(data: bytes, start: int = 0) -> int:
    """The e_machine field of an ELF header at `start`, 0 where there is none."""
    if data[start : start + 4] != MAGIC or len(data) < start + _HEADER.size:
        return 0
    return int(_HEADER.unpack_from(data, start)[2])


def parse(data: bytes) -> Elf:
    """Reads headers, sections and symbols; raises UnverifiableError where anything points outside the file."""
    if len(data) < _HEADER.size or data[:6] != MAGIC + b"\x02\x01":
        raise UnverifiableError(
            "the file is no 64-bit little-endian ELF file", "Pass a cubin, a fatbin or a shared library."
        )
    fields = _HEADER.unpack_from(data)
    offset, entry_size, count, names_index = fields[6], fields[11], fields[12], fields[13]
    program_end = fields[5] + fields[9] * fields[10]
    if entry_size != _SECTION.size or names_index >= count or offset + count * entry_size > len(data):
        raise UnverifiableError("the section table lies outside the file", "Build the file again; it is cut off.")
    rows = [_SECTION.unpack_from(data, offset + i * entry_size) for i in range(count)]
    bodies = [_body(data, row) for row in rows]
    sections = tuple(
        Section(index, _name(bodies[names_index], row[0]), row[2], row[5], body)
        for index, (row, body) in enumerate(zip(rows, bodies, strict=True))
    )
    ends = [row[4] + len(body) for row, body in zip(rows, bodies, strict=True)]
    size = max(program_end, offset + count * entry_size, *ends)
    return Elf(fields[2], fields[1], size, sections, tuple(_symbols(sections, rows)))


def _body(data: bytes, row: tuple[int, ...]) -> bytes:
    kind, offset, size = row[1], row[4], row[5]
    if kind in (0, NO_BITS):
        return b""
    if offset + size > len(data):
        raise UnverifiableError("a section lies outside the file", "Build the file again; it is cut off.")
    return data[offset : offset + size]


def _symbols(sections: tuple[Section, ...], rows: list[tuple[int, ...]]) -> Iterator[Symbol]:
    for section, row in zip(sections, rows, strict=True):
        if section.name != ".symtab":
            continue
        if row[6] >= len(sections) or len(section.data) % _SYMBOL.size:
            raise UnverifiableError("the symbol table is broken", "Build the file again.")
        names = sections[row[6]].data
        for name, info, other, index, value, size in _SYMBOL.iter_unpack(section.data):
            yield Symbol(_name(names, name), info & 0xF, other, index, value, size)


def _name(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if offset > len(table) or end < 0:
        raise UnverifiableError("a name lies outside its table", "Build the file again; it is cut off.")
    return table[offset:end].decode("utf-8", "replace")
