"""Every cubin in a file is found, however it is packed, and nothing beside them is overlooked."""

import functools
import pathlib
import struct
import tempfile

import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import UnverifiableError, Verdict, elf, image, verify_image

_MAGIC = struct.pack("<I", 0xBA55ED50)
_PTX, _CUBIN = 1, 2


@functools.cache
def _cubin(architecture="sm_90a"):
    return zoo.cubin(zoo.ROOT / "tests" / "verify" / "probes" / "memory.cu", architecture).read_bytes()


def _entry(payload, sort=_CUBIN):
    return struct.pack("<HHIQ", sort, 0x101, 64, len(payload)).ljust(64, b"\0") + payload


def _fatbin(*entries):
    return struct.pack("<4sHHQ", _MAGIC, 1, 16, sum(map(len, entries))) + b"".join(entries)


def _library(section=b"", rest=b"", name=".nv_fatbin"):
    """A host ELF file with one section for fatbins, and `rest` in another."""
    names = b"\0.shstrtab\0.rodata\0" + name.encode() + b"\0"
    bodies = [b"", names, rest, section]
    starts = [0, 1, 11, 19]
    offset, table = 64, b""
    for body, start in zip(bodies, starts, strict=True):
        table += struct.pack("<IIQQQQIIQQ", start, 1 if body else 0, 2, 0, offset, len(body), 0, 0, 1, 0)
        offset += len(body)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 3, 62, 1, 0, 0, offset, 0, 64, 56, 0, 64, 4, 1)
    return header + b"".join(bodies) + table


def _verdicts(data):
    """(problem or kernel, verdict) of each report on a file with these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "file")
        path.write_bytes(data)
        reports = verify_image(path)
    return [(report.problems[0].problem if report.problems else report.kernel, report.verdict) for report in reports]


class FoundTest(parameterized.TestCase):
    def test_cubin_itself(self):
        assert image.cubins(_cubin()) == [_cubin()]

    def test_all_architectures_of_a_fatbin(self):
        packed = _fatbin(_entry(_cubin("sm_80")), _entry(_cubin("sm_90a")))
        assert image.cubins(packed) == [_cubin("sm_80"), _cubin("sm_90a")]

    def test_several_fatbins_of_a_library(self):
        section = _fatbin(_entry(_cubin("sm_80"))) + bytes(24) + _fatbin(_entry(_cubin("sm_90a")))
        assert image.cubins(_library(section)) == [_cubin("sm_80"), _cubin("sm_90a")]

    def test_section_of_separate_compilation(self):
        assert image.cubins(_library(_fatbin(_entry(_cubin())), name="__nv_relfatbin")) == [_cubin()]

    def test_cubin_among_the_data_of_a_program(self):
        found = image.cubins(_library(_fatbin(_entry(_cubin("sm_80"))), b"abc" + _cubin("sm_90a") + b"def"))
        assert [elf.parse(data).symbols for data in found] == [
            elf.parse(_cubin(architecture)).symbols for architecture in ("sm_80", "sm_90a")
        ]

    def test_number_that_code_looks_for_is_no_fatbin(self):
        assert image.cubins(_library(_fatbin(_entry(_cubin())), b"\x81\x3c\x24" + _MAGIC + b"\x75\x05")) == [_cubin()]

    def test_cubin_without_code_has_no_kernels(self):
        data = _cubin()
        flags = struct.pack("<QQ", 0x6, 0)  # of a section of code
        assert data.count(flags)
        assert _verdicts(data.replace(flags, struct.pack("<QQ", 0x2, 0))) == [
            ("there is no kernel in it", Verdict.UNKNOWN)
        ]


class RefusedTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("empty", b"", "no 64-bit little-endian ELF"),
        ("text", b"hello, world" * 20, "no 64-bit little-endian ELF"),
        ("program_without_gpu_code", _library(), "holds no GPU code"),
        ("ptx", _fatbin(_entry(b"//PTX", _PTX)), "PTX, which the driver may compile"),
        ("ptx_of_a_library", _library(_fatbin(_entry(b"//PTX", _PTX))), "PTX, which the driver may compile"),
        ("unknown_sort", _fatbin(_entry(b"IR", 8)), "unknown sort 8"),
        ("compressed", _fatbin(_entry(b"\x28\xb5\x2f\xfd" + bytes(100))), "compressed"),
        ("host_code_as_cubin", _fatbin(_entry(_library())), "compressed"),
        ("entry_longer_than_the_file", _fatbin(_entry(bytes(100))[:-10]), "cut off"),
        ("entry_without_a_header", _fatbin(b"\x02\x00\x01"), "cut off"),
        ("bytes_of_no_fatbin", _library(_fatbin() + b"\x07"), "byte 0x10 of the fatbin section"),
        ("fatbin_in_another_section", _library(_fatbin(), _fatbin(_entry(b"x"))), "outside the sections for them"),
        ("empty_fatbin", _fatbin(), "holds no GPU code"),
    )
    def test_is_unverifiable(self, data, problem):
        with pytest.raises(UnverifiableError, match=problem) as refusal:
            image.cubins(data)
        assert refusal.value.remedy

    def test_ptx_beside_a_cubin(self):
        with pytest.raises(UnverifiableError, match=r"PTX.*real architectures only"):
            image.cubins(_fatbin(_entry(_cubin()), _entry(b"//PTX", _PTX)))

    def test_missing_file(self):
        (report,) = verify_image("no/such/file")
        assert report.verdict is Verdict.UNKNOWN
        assert "cannot be read" in report.problems[0].problem


class ElfTest(parameterized.TestCase):
    def _refusal(self, data):
        with pytest.raises(UnverifiableError) as refusal:
            elf.parse(data)
        assert refusal.value.remedy
        return refusal.value.problem

    def _with(self, offset, form, *values):
        data = bytearray(_library(b"section"))
        struct.pack_into(form, data, offset, *values)
        return bytes(data)

    def _row(self, index):
        """Where the row of a section stands in the section table."""
        return struct.unpack_from("<Q", _library(b"section"), 40)[0] + 64 * index

    def test_sections(self):
        parsed = elf.parse(_library(b"section", b"rest"))
        assert [section.name for section in parsed.sections] == ["", ".shstrtab", ".rodata", ".nv_fatbin"]
        assert parsed.data(".nv_fatbin") == b"section"
        assert parsed.data(".none") == b""
        assert parsed.size == len(_library(b"section", b"rest"))

    def test_section_table_outside(self):
        assert "section table lies outside" in self._refusal(self._with(40, "<Q", 1 << 40))

    def test_section_outside(self):
        assert "a section lies outside" in self._refusal(self._with(self._row(3) + 32, "<Q", 1 << 40))

    def test_name_outside_its_table(self):
        assert "a name lies outside" in self._refusal(self._with(self._row(3), "<I", 5000))

    def test_symbol_table_of_odd_size(self):
        data = bytearray(_cubin())
        start = struct.unpack_from("<Q", data, 40)[0]
        index = next(s.index for s in elf.parse(_cubin()).sections if s.name == ".symtab")
        struct.pack_into("<Q", data, start + 64 * index + 32, 25)
        assert "the symbol table is broken" in self._refusal(bytes(data))
