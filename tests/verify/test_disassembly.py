"""nvdisasm is believed only as far as it can be checked: version, errors, every line, every byte."""

import functools
import importlib.metadata
import pathlib
import re
import struct
import tempfile
from unittest import mock

import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import UnverifiableError, Verdict, cubin, disassembly, elf, verify_image

_PRODUCER = (13, 0)


@functools.cache
def _probe():
    return zoo.cubin(zoo.ROOT / "tests" / "verify" / "probes" / "cluster.cu", "sm_90a").read_bytes()


@functools.cache
def _output(*arguments):
    """What nvdisasm writes of the probe."""
    outputs = []

    def remember(*given):
        outputs.append((given[:-1], run(*given)))
        return outputs[-1][1]

    run = disassembly._run
    with mock.patch.object(disassembly, "_run", remember):
        disassembly.sections(_probe(), _PRODUCER)
    return dict(outputs)[arguments]


_FULL, _LIVES = ("-c", "-gi", "-hex"), ("-c", "-plr", "-lrm", "narrow")


def _disassemble(full=None, lives=None):
    """The listing where nvdisasm writes something else."""
    texts = {_FULL: full or _output(*_FULL), _LIVES: lives or _output(*_LIVES)}
    with mock.patch.object(disassembly, "_run", lambda *arguments: texts[arguments[:-1]]):
        architecture, (section,) = disassembly.sections(_probe(), _PRODUCER)
    assert architecture == "sm_90a"
    return section.read()


def _line_with(text, word):
    return next(line for line in text.splitlines() if word in line)


class ListingTest(parameterized.TestCase):
    def test_bytes_are_those_of_the_file(self):
        section = elf.parse(_probe()).section(_disassemble().section)
        assert _disassemble().machine_code == section.data

    def test_source_lines(self):
        listing = _disassemble()
        (stas,) = (listed for listed in listing.code if listed.instruction.opcode == "STAS")
        inner, outer = stas.frames
        assert inner.file.endswith("hopper.cuh")
        assert outer.file.endswith("cluster.cu")
        source = (zoo.ROOT / "tests" / "verify" / "probes" / "cluster.cu").read_text(encoding="utf-8").splitlines()
        assert "store_async" in source[outer.line - 1]

    def test_labels(self):
        listing = _disassemble()
        branches = [listed.instruction for listed in listing.code if listed.instruction.opcode in ("BRA", "BSSY")]
        assert branches
        for branch in branches:
            assert branch.operands[-1].name in listing.labels

    def test_scoreboards(self):
        by_opcode = {listed.instruction.opcode: listed.write_scoreboard for listed in _disassemble().code}
        assert by_opcode["S2R"] is not None
        assert by_opcode["LD"] is not None
        assert by_opcode["FADD"] is by_opcode["IADD3"] is None


class RefusedListingTest(parameterized.TestCase):
    """A listing that is off in any way has no code, and says why."""

    def _problem(self, **changed):
        listing = _disassemble(**changed)
        assert listing.code == ()
        assert listing.problem.remedy
        return listing.problem.problem

    def test_missing_instruction(self):
        text = _output(*_FULL)
        head, _, rest = text.partition(_line_with(text, "/*0040*/"))
        assert "cannot be read" in self._problem(full=head + rest.split("\n", 2)[2])

    def test_missing_second_half_of_an_encoding(self):
        text = _output(*_FULL)
        head, line, rest = text.partition(_line_with(text, "/*0040*/"))
        assert "cannot be read" in self._problem(full=head + line + "\n" + rest.split("\n", 2)[2])

    def test_line_of_unknown_shape(self):
        assert "'WARNING: something'" in self._problem(
            full=_output(*_FULL).replace("\n.L_x_1:", "\nWARNING: something\n.L_x_1:")
        )

    def test_unknown_opcode(self):
        full, lives = (text.replace("STAS.128 ", "FROB.128 ") for text in (_output(*_FULL), _output(*_LIVES)))
        assert "unknown opcode in 'FROB.128" in self._problem(full=full, lives=lives)

    def test_missing_life_ranges(self):
        text = _output(*_LIVES)
        assert "no life ranges for" in self._problem(lives=text.replace(_line_with(text, "STAS.128") + "\n", ""))

    def test_life_ranges_of_another_instruction(self):
        assert "cannot be read" in self._problem(
            lives=_output(*_LIVES).replace("STAS.128 [R12.64]", "STAS.128 [R14.64]")
        )

    def test_life_ranges_where_there_is_no_instruction(self):
        lives = _output(*_LIVES).replace("/*0c50*/", "/*fc50*/")
        assert "where the other listing has no instruction" in self._problem(lives=lives)

    def test_life_ranges_that_disagree(self):
        text = _output(*_LIVES)
        line = _line_with(text, "STAS.128")
        assert "the table says reads" in self._problem(
            lives=text.replace(line, line[:60] + line[60:].replace("v", ":", 1))
        )

    def test_other_kernels_are_none_the_worse(self):
        probes = zoo.ROOT / "tests" / "verify" / "probes"
        data = zoo.cubin(probes / "copies.cu", "sm_90a").read_bytes()
        run = disassembly._run
        with mock.patch.object(disassembly, "_run", lambda *given: run(*given).replace("LDSM.16.M88.4 ", "FROB ")):
            kernels = {kernel.name.partition("(")[0]: kernel.listing for kernel in cubin.kernels(data)}
        assert kernels["matrix_moves"].problem is not None
        assert kernels["copy_groups"].problem is kernels["bulk_copies"].problem is None


class ToolTest(parameterized.TestCase):
    """An nvdisasm that is not the pinned one, or has something to say, is not believed."""

    def _refusal(self, producer=_PRODUCER, data=None):
        with pytest.raises(UnverifiableError) as refusal:
            disassembly.sections(data or _probe(), producer)
        assert refusal.value.remedy
        return str(refusal.value)

    def test_version_that_the_package_pins_was_tested(self):
        text = (zoo.ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert re.search(rf"{disassembly.PACKAGE}==([\d.]+)", text)[1] in disassembly.TESTED

    def test_another_version(self):
        with mock.patch.object(importlib.metadata, "version", return_value="13.9.1"):
            assert "nvdisasm 13.9.1 is installed, the analysis was tested with 13." in self._refusal()

    def test_not_installed(self):
        missing = mock.Mock(side_effect=importlib.metadata.PackageNotFoundError)
        with mock.patch.object(importlib.metadata, "version", missing):
            assert "pip install 'dhp_jax[verify]'" in self._refusal()

    @parameterized.parameters((12, 8), (13, 6), (14, 0))
    def test_producer_that_it_does_not_know(self, major, minor):
        assert f"ptxas {major}.{minor} made this code" in self._refusal((major, minor))

    def test_producer_newer_than_the_installed_one(self):
        with mock.patch.object(disassembly, "version", return_value="13.3.73"):
            assert "ptxas 13.4 made this code, and nvdisasm 13.3.73 reads that of 13.0 to 13.3" in self._refusal(
                (13, 4)
            )

    def test_does_not_start(self):
        with mock.patch.object(disassembly.subprocess, "run", mock.Mock(side_effect=OSError("no such file"))):
            assert "nvdisasm does not start: no such file" in self._refusal()

    @parameterized.parameters((0, "nvdisasm warning : Std Elf"), (1, ""))
    def test_warning_or_failure(self, status, said):
        done = mock.Mock(returncode=status, stderr=said, stdout="")
        with mock.patch.object(disassembly.subprocess, "run", mock.Mock(return_value=done)):
            assert f"nvdisasm ended with status {status}" in self._refusal()

    def test_garbage(self):
        assert "nvdisasm ended with status" in self._refusal(data=b"\x7fELF and nothing more")


class CubinTest(parameterized.TestCase):
    """What a cubin says of its kernels is read, and held against the disassembly."""

    def _refusal(self, data):
        with pytest.raises(UnverifiableError) as refusal:
            cubin.kernels(data)
        assert refusal.value.remedy
        return refusal.value.problem

    def _refusal_after(self, data):
        """The refusal of a file of which nvdisasm would say what it says of another."""
        with self._said_of_the_probe():
            return self._refusal(data)

    def _said_of_the_probe(self):
        said = disassembly.sections(_probe(), _PRODUCER)
        return mock.patch.object(disassembly, "sections", return_value=said)

    def _changed(self, section, old, new):
        """The probe with bytes of one section replaced."""
        data = elf.parse(_probe()).section(section).data
        assert data.count(old) == 1
        assert len(old) == len(new)
        start = _probe().index(data)
        return _probe()[:start] + data.replace(old, new) + _probe()[start + len(data) :]

    def test_facts(self):
        (kernel,) = cubin.kernels(_probe())
        assert kernel.name == "cluster_exchange(TensorMap, float*)"
        assert kernel.architecture == "sm_90a"
        assert kernel.ptxas.startswith("13.0.")
        assert [(parameter.offset, parameter.size) for parameter in kernel.parameters] == [(48, 128), (176, 8)]
        assert kernel.parameter_base == 0x210
        assert kernel.registers > 32
        assert kernel.shared_bytes > 8192
        assert kernel.stack_bytes == 0

    def test_hash_is_of_the_code_alone(self):
        (kernel,) = cubin.kernels(_probe())
        (other,) = cubin.kernels(self._changed(".note.nv.tkinfo", b"V13.0.", b"V13.1."))
        assert kernel.code_hash == other.code_hash
        assert kernel.ptxas != other.ptxas

    def test_code_that_is_not_what_was_disassembled(self):
        (kernel,) = cubin.kernels(_probe())
        changed = self._changed(kernel.listing.section, kernel.listing.code[5].encoding, bytes(16))
        assert "is not that of the bytes that will run" in self._refusal_after(changed)
        with tempfile.TemporaryDirectory() as folder, self._said_of_the_probe():
            path = pathlib.Path(folder, "changed.cubin")
            path.write_bytes(changed)
            (report,) = verify_image(path)
        assert (report.verdict, report.kernel) == (Verdict.UNKNOWN, kernel.name)
        assert "is not that of the bytes that will run" in report.problems[0].problem

    def test_code_that_was_not_disassembled(self):
        with mock.patch.object(disassembly, "sections", return_value=("sm_90a", [])):
            assert "is not that of the bytes that will run" in self._refusal(_probe())

    def test_no_producer(self):
        assert "does not say which ptxas" in self._refusal(self._changed(".note.nv.tkinfo", b"release ", b"reliese "))

    def test_host_program(self):
        host = _probe()[:18] + struct.pack("<H", 62) + _probe()[20:]
        assert "no linked cubin" in self._refusal(host)

    def test_kernel_without_its_mark(self):
        symbols = elf.parse(_probe())
        (entry,) = (symbol for symbol in symbols.symbols if symbol.other & 0x10)
        record = struct.pack("<BBHQQ", 0x12, entry.other, entry.section, entry.value, entry.size)
        unmarked = struct.pack("<BBHQQ", 0x12, 0, entry.section, entry.value, entry.size)
        assert "code and no kernel" in self._refusal(self._changed(".symtab", record, unmarked))

    def test_kernel_elsewhere_in_its_section(self):
        (entry,) = (symbol for symbol in elf.parse(_probe()).symbols if symbol.other & 0x10)
        record = struct.pack("<BBHQQ", 0x12, entry.other, entry.section, 0, entry.size)
        moved = struct.pack("<BBHQQ", 0x12, entry.other, entry.section, 16, entry.size)
        assert "does not begin its section" in self._refusal_after(self._changed(".symtab", record, moved))

    def test_parameters_without_a_place(self):
        name = next(s.name for s in elf.parse(_probe()).sections if s.name.startswith(".nv.info."))
        assert "where the parameters of a kernel lie" in self._refusal(
            self._changed(name, b"\x04\x0a\x08\x00", b"\x04\x7e\x08\x00")
        )

    def test_attributes_that_are_cut_off(self):
        name = next(s.name for s in elf.parse(_probe()).sections if s.name.startswith(".nv.info."))
        changed = self._changed(name, b"\x04\x0a\x08\x00", b"\x04\x0a\x04\x00")
        assert "describes its kernels wrongly" in self._refusal_after(changed)

    def test_name_without_the_cxx_library(self):
        with mock.patch.object(cubin.ctypes, "CDLL", mock.Mock(side_effect=OSError)):
            assert cubin.demangled("_Z1fv") == "_Z1fv"

    def test_name_that_is_not_mangled(self):
        assert cubin.demangled("plain_c") == "plain_c"
