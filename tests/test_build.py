"""What was built is what BUILD.md says: which machine code, which libraries it needs, and which jaxlib it fits."""

import pathlib
import struct
import subprocess
import sys

import pytest
from absl.testing import parameterized

from dhp_jax import ffi

_FATBIN_MAGIC = 0xBA55ED50
_KINDS = {1: "ptx", 2: "cubin"}


def gpu_code(library):
    """(kind, compute capability) of every piece of GPU code in a shared library.

    A fat binary is a header (magic, version, header size, payload size) and then entries, each with its kind, header
    size, payload size and, at byte 28, its architecture.
    """
    found = set()
    start = -1
    while (start := library.find(struct.pack("<I", _FATBIN_MAGIC), start + 1)) >= 0:
        header_size, payload_size = struct.unpack_from("<HQ", library, start + 6)
        entry, end = start + header_size, start + header_size + payload_size
        while entry < end:
            kind, _, entry_header, entry_payload = struct.unpack_from("<HHIQ", library, entry)
            (architecture,) = struct.unpack_from("<I", library, entry + 28)
            found.add((_KINDS.get(kind, f"kind {kind}"), architecture))
            entry += entry_header + entry_payload
    return found


def _library(pattern):
    (path,) = pathlib.Path(ffi.native().__file__).parent.glob(pattern)
    return path


class GpuCodeTest(parameterized.TestCase):
    def test_library_holds_machine_code_for_two_architectures_and_no_ptx(self):
        if not ffi.native().CUDA_ARCHITECTURES:
            pytest.skip("built without CUDA")
        assert gpu_code(_library("libdhp_kernels.*").read_bytes()) == {("cubin", 80), ("cubin", 90)}

    def test_ptx_would_be_seen(self):
        entry = struct.pack("<HHIQIIIIII", 1, 0x101, 64, 8, 0, 0, 0, 90, 0, 0).ljust(64, b"\0") + b"ptx text"
        fat_binary = struct.pack("<IHHQ", _FATBIN_MAGIC, 1, 16, len(entry)) + entry
        assert gpu_code(b"elf" + fat_binary) == {("ptx", 90)}


class LoadingTest(parameterized.TestCase):
    @parameterized.parameters("_native.*", "libdhp_kernels.*")
    def test_needs_no_driver_and_no_cuda_library(self, pattern):
        needed = subprocess.run(["ldd", _library(pattern)], capture_output=True, text=True, check=True).stdout
        assert "libc.so" in needed
        for name in ("libcuda.", "libcudart.", "libnvrtc", "not found"):
            assert name not in needed

    def test_kernel_library_knows_no_python(self):
        assert b"PyObject" not in _library("libdhp_kernels.*").read_bytes()
        assert b"PyObject" in _library("_native.*").read_bytes()


class ReportTest(parameterized.TestCase):
    def test_report_names_versions_and_a_kernel_for_every_device(self):
        command = [sys.executable, "-P", "-m", "dhp_jax"]  # -P: not from the source tree in the working directory
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for text in ("dhp_jax ", "jaxlib ", "XLA FFI 0.3", "CUDA kernels:", "(cpu): host kernels for"):
            assert text in report
