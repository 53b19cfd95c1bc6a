"""Reads what is needed of an x86-64 ELF file: code, constants, the names it exports, and relocations."""

from __future__ import annotations

import dataclasses
import pathlib
import struct

from dhp_jax.verify.verdict import UnverifiableError

_X86_64 = 62
_LOAD, _RELRO = 1, 0x6474E552  # kinds of segments
_EXECUTABLE, _WRITABLE = 1, 2
_RELOCATIONS, _DYNAMIC_SYMBOLS = 4, 11  # types of sections, both kept by strip
_IN_MEMORY = 2
_ABSOLUTE, _GLOBAL_DATA, _JUMP_SLOT, _RELATIVE = 1, 6, 7, 8  # types of relocations


@dataclasses.dataclass(frozen=True)
class _Range:
    """A segment, or a section: `size` bytes of the file from `offset` on, that lie in memory at `address`."""

    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int = 0

    def holds(self, address: int, size: int = 1) -> bool:
        return self.address <= address and address + size <= self.address + self.size


class Elf:
    """An ELF file of x86-64 as the dynamic linker sees it; it may be stripped.

    Attributes:
      path: the file.
      symbols: address of each name that the file exports.
      pointers: address of each relocated word -> the address in this file that it will hold.
      imports: address of each word that will hold the address of an imported name -> that name.
    """

    def __init__(self, path: pathlib.Path):
        """Reads a file.

        Raises:
          UnverifiableError: it is not a whole x86-64 ELF file.
        """
        self.path = path
        try:
            self._bytes = path.read_bytes()
            self._segments, self._sections = self._read_layout()
            symbols = self._read_symbols()
            self.symbols = {name: address for name, address, defined in symbols if defined}
            self.pointers, self.imports = self._read_relocations(symbols)
        except (OSError, struct.error, ValueError, IndexError, UnverifiableError) as error:
            raise UnverifiableError(
                f"{path} cannot be read ({error}); it must be the library or the driver of an installed dhp_jax, and "
                "an ELF file for x86-64, the only processor that this check knows. Reinstall the package"
            ) from error

    def _read_layout(self) -> tuple[list[_Range], list[_Range]]:
        magic, bits, order = struct.unpack_from("4sBB", self._bytes)
        (machine,) = struct.unpack_from("<H", self._bytes, 18)
        if (magic, bits, order, machine) != (b"\x7fELF", 2, 1, _X86_64):
            raise ValueError("its header is not that of an ELF file for x86-64")
        segment_table, section_table = struct.unpack_from("<QQ", self._bytes, 32)
        segment_size, segment_count, section_size, section_count = struct.unpack_from("<HHHH", self._bytes, 54)
        segments, sections = [], []
        for place in range(segment_table, segment_table + segment_size * segment_count, segment_size):
            kind, flags, offset, address, _, size = struct.unpack_from("<IIQQQQ", self._bytes, place)
            segments.append(_Range(kind, flags, address, offset, size))
        for place in range(section_table, section_table + section_size * section_count, section_size):
            _, kind, flags, address, offset, size, link = struct.unpack_from("<IIQQQQI", self._bytes, place)
            sections.append(_Range(kind, flags, address, offset, size, link))
        if any(s.offset + s.size > len(self._bytes) for s in segments if s.kind == _LOAD):
            raise ValueError("the file ends before its segments do")
        return segments, sections

    def _read_symbols(self) -> list[tuple[str, int, bool]]:
        """(name, address, whether it is defined here) of every dynamic symbol."""
        (table,) = [s for s in self._sections if s.kind == _DYNAMIC_SYMBOLS]
        names = self._sections[table.link].address
        symbols = []
        for name, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", self.read(table.address, table.size)):
            symbols.append((self.string(names + name), value, section != 0))
        return symbols

    def _read_relocations(self, symbols: list[tuple[str, int, bool]]) -> tuple[dict[int, int], dict[int, str]]:
        pointers, imports = {}, {}
        for table in self._sections:
            if table.kind != _RELOCATIONS or not table.flags & _IN_MEMORY:
                continue
            for place, info, addend in struct.iter_unpack("<QQq", self.read(table.address, table.size)):
                kind, (name, value, defined) = info & 0xFFFFFFFF, symbols[info >> 32]
                if kind == _RELATIVE:
                    pointers[place] = addend
                elif kind in (_ABSOLUTE, _GLOBAL_DATA, _JUMP_SLOT):
                    imports[place] = name
                    if defined:
                        pointers[place] = value + addend
        return pointers, imports

    def read(self, address: int, size: int) -> bytes:
        """The bytes at an address, before relocation.

        Raises:
          UnverifiableError: they are not all in the file.
        """
        for segment in self._segments:
            if segment.kind == _LOAD and segment.holds(address, size):
                start = segment.offset + address - segment.address
                return self._bytes[start : start + size]
        raise UnverifiableError(f"{self.path} has no {size} bytes at address {address:#x}")

    def string(self, address: int) -> str:
        """The zero-terminated string at an address.

        Raises:
          UnverifiableError: there is none.
        """
        for segment in self._segments:
            start = segment.offset + address - segment.address
            if segment.kind == _LOAD and segment.holds(address) and (end := self._bytes.find(b"\0", start)) >= 0:
                return self._bytes[start:end].decode(errors="replace")
        raise UnverifiableError(f"{self.path} has no string at address {address:#x}")

    def is_code(self, address: int) -> bool:
        """Whether the address lies in executable memory."""
        return any(s.kind == _LOAD and s.flags & _EXECUTABLE and s.holds(address) for s in self._segments)

    def is_constant(self, address: int, size: int = 1) -> bool:
        """Whether nothing writes these bytes once the file is loaded."""
        if any(s.kind == _RELRO and s.holds(address, size) for s in self._segments):
            return True
        return any(s.kind == _LOAD and not s.flags & _WRITABLE and s.holds(address, size) for s in self._segments)
