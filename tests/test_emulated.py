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
from test_tile_edges import HOPPER_TILES

_TESTS = ROOT / "tests"
_DTYPES = "reference and (float32 or bfloat16)"
_AMPERE, _HOPPER = "8", "9"


def _pytest(library, file, chosen, capability):
    """Runs tests of another file on the emulated kernels."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-x"]
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
        ("test_tile_edges.py", "HopperTileEdgeTest", _HOPPER, 70),
    )
    def test_emulated_kernels_pass(self, file, chosen, capability, fewest):
        done = _pytest(emulation.library(), file, chosen, capability)
        assert done.returncode == 0, done.stdout[-4000:]
        assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= fewest

    def test_tiles_of_the_hopper_kernel(self):
        program = emulation.program(emulation.FOLDER / "tiles_sm90.cc")
        lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
        assert {tuple(map(int, line.split())) for line in lines} == set(HOPPER_TILES)

    def test_they_are_what_runs(self):
        program = "import dhp_jax; print(dhp_jax.build_info()['host_isa'])"
        environment = {**os.environ, "LD_PRELOAD": str(emulation.library())}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.stdout == "emulated\n"


class DriverTest(parameterized.TestCase):
    @parameterized.parameters(
        ("old", "the driver has no cuTensorMapEncodeTiled; use one of CUDA 12.0 or newer"),
        ("refusing", "the driver refused a tensor map (error 1)"),
    )
    def test_driver_without_tensor_maps_is_reported(self, driver, message):
        program = "import dhp_jax, jax.numpy as jnp; x = jnp.ones((1, 8, 2, 64), jnp.bfloat16); "
        environment = {**os.environ, "LD_PRELOAD": str(emulation.library()), emulation.CAPABILITY: _HOPPER}
        done = subprocess.run(
            [sys.executable, "-c", program + "dhp_jax.dot_product_attention(x, x, x).block_until_ready()"],
            capture_output=True,
            text=True,
            env={**environment, emulation.DRIVER: driver},
        )
        assert done.returncode == 1
        assert message in done.stderr
        assert "T=8" in done.stderr.partition(message)[2]


class ControlTest(parameterized.TestCase):
    @parameterized.parameters(
        ("kernels/attention_fwd_sm80.cuh", r"__syncthreads\(\);  // all copies of this tile are seen", _AMPERE),
        ("device/tile_ring.cuh", r"(?<=uint32_t take\(int i\) const {)\s*wait_for_phase\(.*\);", _HOPPER),
    )
    def test_a_kernel_that_does_not_wait_fails(self, file, waits, capability):
        with tempfile.TemporaryDirectory() as folder:
            cuda = pathlib.Path(folder, "cuda")
            shutil.copytree(ROOT / "cuda", cuda)
            text, found = re.subn(waits, "//", (cuda / file).read_text(encoding="utf-8"))
            assert found == 1
            (cuda / file).write_text(text, encoding="utf-8")
            done = _pytest(emulation.library(cuda), "test_forward.py", "reference and bfloat16", capability)
        assert done.returncode != 0
        assert re.search("1 failed|emulator: ", done.stdout + done.stderr)


_NEVER_COME = "no thread can go on: some wait for others that never come"
_UNDER_WAY = "a thread ends with stores or products under way"
_NOT_FENCED = "a store that no fence has made known"


class MisuseTest(parameterized.TestCase):
    def _run(self, file, name):
        program = emulation.program(emulation.FOLDER / file)
        return subprocess.run([program, name], capture_output=True, text=True)

    @parameterized.parameters("misuse.cc", "misuse_sm90.cc")
    def test_proper_kernel_ends_well(self, file):
        assert self._run(file, "proper").returncode == 0

    @parameterized.parameters(
        ("misuse.cc", "copy_that_nobody_waits_for"),
        ("misuse.cc", "missing_barrier"),
        ("misuse_sm90.cc", "box_read_too_early"),
        ("misuse_sm90.cc", "sums_read_too_early"),
        ("misuse_sm90.cc", "sums_read_with_their_group_under_way"),
    )
    def test_what_is_read_too_early_is_nan(self, file, name):
        done = self._run(file, name)
        assert (done.returncode, done.stderr) == (1, "a result is not a number\n")

    @parameterized.parameters(
        ("misuse.cc", "store_under_a_copy", "a store to where a copy is under way"),
        ("misuse.cc", "copy_under_way_at_the_end", "a thread ends with copies under way"),
        ("misuse.cc", "barrier_for_one_warp", _NEVER_COME),
        ("misuse.cc", "lanes_apart", "lanes of one warp meet at different instructions"),
        ("misuse.cc", "lane_that_never_comes", _NEVER_COME),
        ("misuse.cc", "outside_of_shared_memory", "an address outside of the block's shared memory"),
        (
            *("misuse.cc", "shared_address_not_aligned"),
            "an address in shared memory that is not a multiple of the size",
        ),
        ("misuse.cc", "global_address_not_aligned", "a copy from an address that is not aligned"),
        ("misuse_sm90.cc", "sums_changed", "sums were changed under a product"),
        ("misuse_sm90.cc", "operand_changed", "an operand was changed under a product"),
        ("misuse_sm90.cc", "operands_differ", "threads of a warpgroup have different operands"),
        ("misuse_sm90.cc", "operand_of_another_layout", "a descriptor of another layout"),
        ("misuse_sm90.cc", "group_that_never_waits", _UNDER_WAY),
        ("misuse_sm90.cc", "half_a_group", _NEVER_COME),
        ("misuse_sm90.cc", "product_of_what_is_not_fenced", _NOT_FENCED),
        ("misuse_sm90.cc", "box_of_what_is_not_fenced", _NOT_FENCED),
        ("misuse_sm90.cc", "stored_box_that_nobody_waits_for", _UNDER_WAY),
        (
            *("misuse_sm90.cc", "loaded_box_that_nobody_waits_for"),
            "a block ends with copies that nobody has waited for",
        ),
        ("misuse_sm90.cc", "store_under_a_box", "a store to where a copy is under way"),
        ("misuse_sm90.cc", "box_not_aligned", "a box in shared memory that is not aligned to 1024 bytes"),
        ("misuse_sm90.cc", "stored_box_not_aligned", "a box in shared memory that is not aligned to 1024 bytes"),
        ("misuse_sm90.cc", "box_outside_of_shared_memory", "an address outside of the block's shared memory"),
        ("misuse_sm90.cc", "map_not_aligned", "a tensor map that is not aligned to 64 bytes"),
        ("misuse_sm90.cc", "barrier_not_made", "a barrier that nobody has made"),
        ("misuse_sm90.cc", "barrier_not_fenced", "a barrier that no fence has made known"),
        (
            *("misuse_sm90.cc", "too_many_arrivals"),
            "a barrier has more arrivals in a phase than it was made for",
        ),
        ("misuse_sm90.cc", "too_few_arrivals", _NEVER_COME),
        ("misuse_sm90.cc", "more_bytes_than_come", _NEVER_COME),
        ("misuse_sm90.cc", "fewer_bytes_than_come", _NEVER_COME),
        ("misuse_sm90.cc", "met_in_different_numbers", "threads meet in different numbers"),
        ("misuse_sm90.cc", "numbered_barrier_for_one_warp", _NEVER_COME),
        ("misuse_sm90.cc", "barrier_without_a_number", "a barrier whose number is not 1 to 15"),
    )
    def test_is_reported(self, file, name, message):
        done = self._run(file, name)
        assert done.returncode < 0
        assert f"emulator: {message} (block 0, thread " in done.stderr
