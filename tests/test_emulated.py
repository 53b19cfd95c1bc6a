"""The CUDA kernels give the right numbers on a CPU, under an emulator that is hard on them (tests/emulator).

What a GPU alone can show, machine code, timing and the hardware's own rounding, is left to ``pytest -m gpu``.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import emulation
from absl.testing import parameterized
from nvcc import ROOT

_TESTS = ROOT / "tests"
_DTYPES = "reference and (float32 or bfloat16)"
_AMPERE, _HOPPER = "8", "9"


def _pytest(library, file, chosen, capability):
    """Runs tests of another file on the emulated kernels."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-x"]
    return subprocess.run(
        [*command, str(_TESTS / file), "-k", chosen],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "LD_PRELOAD": str(library), emulation.CAPABILITY: capability},
    )


class ConformanceTest(parameterized.TestCase):
    @parameterized.parameters(
        ("test_forward.py", _DTYPES, _AMPERE, 150),
        ("test_forward.py", "reference and (bfloat16 or float16)", _HOPPER, 200),
        ("test_backward.py", _DTYPES, _AMPERE, 70),
        ("test_differences.py", "LengthTest or EmptyRowTest or (NotFiniteTest and reference)", _AMPERE, 40),
        ("test_differences.py", "EmptyRowTest or (NotFiniteTest and reference)", _HOPPER, 20),
    )
    def test_emulated_kernels_pass(self, file, chosen, capability, fewest):
        done = _pytest(emulation.library(), file, chosen, capability)
        assert done.returncode == 0, done.stdout[-4000:]
        assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= fewest

    def test_they_are_what_runs(self):
        program = "import dhp_jax; print(dhp_jax.build_info()['host_isa'])"
        environment = {**os.environ, "LD_PRELOAD": str(emulation.library())}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.stdout == "emulated\n"


class ControlTest(parameterized.TestCase):
    def test_a_kernel_that_does_not_wait_fails(self):
        with tempfile.TemporaryDirectory() as folder:
            cuda = pathlib.Path(folder, "cuda")
            shutil.copytree(ROOT / "cuda", cuda)
            kernel = cuda / "kernels" / "attention_fwd_sm80.cuh"
            text = kernel.read_text(encoding="utf-8")
            waits = "__syncthreads();  // all copies of this tile are seen"
            assert text.count(waits) == 1
            kernel.write_text(text.replace(waits, "//"), encoding="utf-8")
            done = _pytest(emulation.library(cuda), "test_forward.py", _DTYPES, _AMPERE)
        assert done.returncode == 1
        assert "1 failed" in done.stdout


class MisuseTest(parameterized.TestCase):
    def _run(self, name):
        program = emulation.program(emulation.FOLDER / "misuse.cc")
        return subprocess.run([program, name], capture_output=True, text=True)

    def test_proper_kernel_ends_well(self):
        assert self._run("proper").returncode == 0

    @parameterized.parameters("copy_that_nobody_waits_for", "missing_barrier")
    def test_what_is_read_too_early_is_nan(self, name):
        done = self._run(name)
        assert (done.returncode, done.stderr) == (1, "a result is not a number\n")

    @parameterized.parameters(
        ("store_under_a_copy", "a store to where a copy is under way"),
        ("copy_under_way_at_the_end", "a thread ends with copies under way"),
        ("barrier_for_one_warp", "no thread can go on: some wait for others that never come"),
        ("lanes_apart", "lanes of one warp meet at different instructions"),
        ("lane_that_never_comes", "no thread can go on: some wait for others that never come"),
        ("outside_of_shared_memory", "an address outside of the block's shared memory"),
        ("shared_address_not_aligned", "an address in shared memory that is not a multiple of the size"),
        ("global_address_not_aligned", "a copy from an address that is not aligned"),
    )
    def test_is_reported(self, name, message):
        done = self._run(name)
        assert done.returncode < 0
        assert f"emulator: {message} (block 0, thread " in done.stderr
