"""The kernels of one cubin: code, parameters and resources."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import re
import struct
from collections.abc import Iterator

from dhp_jax.verify import disassembly, elf
from dhp_jax.verify.disassembly import Listing
from dhp_jax.verify.elf import Elf
from dhp_jax.verify.policy import Parameter
from dhp_jax.verify.verdict import UnverifiableError

_FUNCTION, _ENTRY = 2, 0x10  # of symbols: sort, and the mark of a kernel
_PARAMETER, _PARAMETER_BLOCK, _REGISTERS, _FRAME = 0x17, 0x0A, 0x2F, 0x11  # attributes in .nv.info sections
_FLAGS = 0x30  # of the ELF header
_NO_PARAMETERS = 1 << 16
_TOOL = re.compile(rb"release (\d+)\.(\d+), V([\d.]+)")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of one cubin.

    Attributes:
        symbol: mangled name.
        architecture: such as "sm_90a".
        ptxas: version of the assembler that made it.
        code: the machine code.
        listing: the same, disassembled.
        parameters: where each lies in the parameter block.
        parameter_base: where the parameter block lies in constant bank 0, in bytes.
        registers: for each thread.
        shared_bytes: static shared memory of a block.
        stack_bytes: local memory of a thread.
    """

    symbol: str
    architecture: str
    ptxas: str
    code: bytes
    listing: Listing
    parameters: tuple[Parameter, ...]
    parameter_base: int
    registers: int
    shared_bytes: int
    stack_bytes: int

    @functools.cached_property
    def name(self) -> str:
        """The demangled name."""
        return demangled(self.symbol)

    @functools.cached_property
    def code_hash(self) -> str:
        """SHA-256 of the machine code."""
        return hashlib.sha256(self.code).hexdigest()


@dataclasses.dataclass(frozen=True)
class Unread:
    """A kernel whose listing is not read yet.

    Attributes:
        kernel: without code in its listing.
        section: what nvdisasm says of its code.
    """

    kernel: Kernel
    section: disassembly.Unread

    def read(self) -> Kernel:
        """The kernel; raises UnverifiableError where the listing is not that of its code."""
        return dataclasses.replace(self.kernel, listing=_read(self.section, self.kernel.code))


def count(data: bytes) -> int:
    """How many kernels a cubin has, as a first look says."""
    try:
        return sum(bool(symbol.kind == _FUNCTION and symbol.other & _ENTRY) for symbol in elf.parse(data).symbols)
    except UnverifiableError:
        return 1


def architecture(data: bytes) -> str:
    """What a cubin is for, such as "sm_90a": the second byte of the ELF header's flags is 80 or 90."""
    capability = struct.unpack_from("<I", data, _FLAGS)[0] >> 8 & 0xFF
    return "sm_90a" if capability == 90 else f"sm_{capability}"


def kernels(data: bytes) -> list[Kernel]:
    """All kernels of a cubin; a cubin without any code has none."""
    return [kernel.read() for kernel in unread(data)]


def unread(data: bytes) -> list[Unread]:
    """The same, before their listings are read: most of the time goes there, and it can be shared out."""
    image = elf.parse(data)
    if image.machine != elf.MACHINE_CUDA or image.type != elf.TYPE_EXECUTABLE:
        raise UnverifiableError(
            "this ELF file is no linked cubin", "Pass what nvcc -cubin makes, or the fatbin or library that holds it."
        )
    code = [section for section in image.sections if section.executable]
    if not code:
        return []
    version = _TOOL.search(image.data(".note.nv.tkinfo"))
    if not version:
        raise UnverifiableError("the cubin does not say which ptxas made it", "Build it with CUDA 13.")
    architecture, sections = disassembly.sections(data, (int(version[1]), int(version[2])))
    by_section = {section.section: section for section in sections}
    for section in code:
        if section.name not in by_section or image.data(f".rela{section.name}"):
            raise _other_code(section.name)
    try:
        found = list(_entries(image, architecture, version[3].decode(), by_section))
    except (struct.error, IndexError) as error:
        raise UnverifiableError(f"the cubin describes its kernels wrongly: {error}", "Build it again.") from None
    if not found:
        raise UnverifiableError("the cubin has code and no kernel", "Pass the linked image that holds the kernel.")
    of_kernels = {kernel.section.section for kernel in found}
    for section in code:
        if section.name not in of_kernels:
            _read(by_section[section.name], section.data)
    return found


def _read(section: disassembly.Unread, code: bytes) -> Listing:
    listing = section.read()
    if listing.problem is None and listing.machine_code != code:
        raise _other_code(section.section)
    return listing


def _other_code(section: str) -> UnverifiableError:
    return UnverifiableError(
        f"the disassembly of {section} is not that of the bytes that will run",
        "Use a cubin without relocations in its code.",
    )


def _entries(image: Elf, architecture: str, ptxas: str, sections: dict[str, disassembly.Unread]) -> Iterator[Unread]:
    resources = _resources(image)
    for index, symbol in enumerate(image.symbols):
        if symbol.kind != _FUNCTION or not symbol.other & _ENTRY:
            continue
        section = image.sections[symbol.section]
        if section.name != f".text.{symbol.name}" or symbol.value:
            raise UnverifiableError(f"kernel {symbol.name} does not begin its section", "Build the cubin again.")
        attributes = list(_attributes(image.data(f".nv.info.{symbol.name}")))
        shared = image.section(f".nv.shared.{symbol.name}")
        kernel = Kernel(
            symbol=symbol.name,
            architecture=architecture,
            ptxas=ptxas,
            code=section.data,
            listing=Listing(section.name, (), {}),
            parameters=tuple(sorted(_parameters(attributes), key=lambda parameter: parameter.index)),
            parameter_base=_parameter_base(attributes),
            registers=resources.get((_REGISTERS, index), 0),
            shared_bytes=shared.size if shared else 0,
            stack_bytes=resources.get((_FRAME, index), 0),
        )
        yield Unread(kernel, sections[section.name])


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes are (format, name, value): format 4 has a size and then bytes, the others two bytes."""
    position = 0
    while position + 4 <= len(data):
        form, name, value = struct.unpack_from("<BBH", data, position)
        size = value if form == 4 else 0
        yield name, data[position + 4 : position + 4 + size] if form == 4 else data[position + 2 : position + 4]
        position += 4 + size


def _resources(image: Elf) -> dict[tuple[int, int], int]:
    """Registers and stack bytes, by attribute and symbol."""
    found = {}
    for name, value in _attributes(image.data(".nv.info")):
        if name in (_REGISTERS, _FRAME):
            symbol, amount = struct.unpack("<II", value)
            found[name, symbol] = amount
    return found


def _parameters(attributes: list[tuple[int, bytes]]) -> Iterator[Parameter]:
    for name, value in attributes:
        if name == _PARAMETER:
            _, index, offset, rest = struct.unpack("<IHHI", value)
            yield Parameter(index, offset, rest >> 18)


def _parameter_base(attributes: list[tuple[int, bytes]]) -> int:
    """Where parameters begin; beyond the bank where there are none."""
    for name, value in attributes:
        if name == _PARAMETER_BLOCK:
            return int(struct.unpack("<IHH", value)[1])
    if any(name == _PARAMETER for name, _ in attributes):
        raise UnverifiableError("the cubin does not say where the parameters of a kernel lie", "Build it again.")
    return _NO_PARAMETERS


def demangled(symbol: str) -> str:
    """A C++ name as people write it, or the symbol itself where the C++ library is not there to ask."""
    try:
        demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    except (OSError, AttributeError):
        return symbol
    demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    text = demangle(symbol.encode(), None, None, ctypes.byref(status))
    if not text:
        return symbol
    name = ctypes.cast(text, ctypes.c_char_p).value or b""
    ctypes.CDLL(None).free(ctypes.c_void_p(text))
    return name.decode()
