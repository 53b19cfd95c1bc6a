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
from test_tile_edges import HOPPER_TILES, SMALL_TILES

_TESTS = ROOT / "tests"
_DTYPES = "reference and (float32 or bfloat16)"
_AMPERE, _HOPPER = {emulation.CAPABILITY: "8"}, {emulation.CAPABILITY: "9"}
# With one, a block that persists has all items, and the kernel for few rows and keys takes hardly any call.
_ONE_HOPPER = {**_HOPPER, emulation.MULTIPROCESSORS: "1"}
_LARGE_HOPPER = {**_HOPPER, emulation.MULTIPROCESSORS: "132"}  # it takes what it can


def _pytest(library, file, chosen, gpu):
    """Runs tests of another file on the emulated kernels."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-x"]
    return subprocess.run(
        [*command, str(_TESTS / file), "-k", chosen],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "LD_PRELOAD": str(library), **gpu},
    )


class ConformanceTest(parameterized.TestCase):
    @parameterized.parameters(
        ("test_forward.py", _DTYPES, _AMPERE, 150),
        ("test_forward.py", "reference and (bfloat16 or float16)", _HOPPER, 200),
        ("test_backward.py", _DTYPES, _AMPERE, 70),
        ("test_differences.py", "LengthTest or EmptyRowTest or (NotFiniteTest and reference)", _AMPERE, 40),
        ("test_differences.py", "LengthTest or EmptyRowTest or (NotFiniteTest and reference)", _HOPPER, 40),
        ("test_tile_edges.py", "HopperTileEdgeTest", _ONE_HOPPER, 70),
        ("test_forward.py", "reference and (bfloat16 or float16)", _LARGE_HOPPER, 200),
        ("test_differences.py", "EmptyRowTest or (NotFiniteTest and reference)", _LARGE_HOPPER, 20),
        ("test_tile_edges.py", "SmallTileEdgeTest", _LARGE_HOPPER, 80),
        ("test_decode.py", "DecodeTest and not float32", _HOPPER, 70),
        ("test_masks.py", "Test", _HOPPER, 100),
        ("test_extremes.py", "FewKeysTest", _ONE_HOPPER, 30),
        ("test_extremes.py", "FewKeysTest and many_rows", _LARGE_HOPPER, 6),
        ("test_extremes.py", "LargeScoreTest and bfloat16", _AMPERE, 12),
        ("test_extremes.py", "LargeScoreTest and not float32", _HOPPER, 24),
        ("test_extremes.py", "LargeScoreTest and not float32", _LARGE_HOPPER, 24),
        ("test_tile_edges.py", "HopperTileEdgeTest", _LARGE_HOPPER, 70),  # two blocks share the keys
    )
    def test_emulated_kernels_pass(self, file, chosen, gpu, fewest):
        done = _pytest(emulation.library(), file, chosen, gpu)
        assert done.returncode == 0, done.stdout[-4000:]
        assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= fewest

    @parameterized.parameters(("tiles_sm90.cc", HOPPER_TILES), ("tiles_small_sm90.cc", SMALL_TILES))
    def test_tiles_of_the_hopper_kernels(self, file, tiles):
        program = emulation.program(emulation.FOLDER / file)
        lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
        assert {tuple(map(int, line.split())) for line in lines} == set(tiles)

    def test_they_are_what_runs(self):
        program = "import dhp_jax; print(dhp_jax.build_info()['host_isa'])"
        environment = {**os.environ, "LD_PRELOAD": str(emulation.library())}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.stdout == "emulated\n"


def _attend(query, key, dtype, options, **gpu):
    """Attention of arrays of ones, of these shapes, in a process of its own."""
    program = (
        f"import dhp_jax, jax.numpy as jnp; q, k = jnp.ones({query}, '{dtype}'), jnp.ones({key}, '{dtype}')\n"
        f"dhp_jax.dot_product_attention(q, k, k, {options}).block_until_ready()"
    )
    environment = {**os.environ, "LD_PRELOAD": str(emulation.library()), **_HOPPER, **gpu}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


class ChoiceTest(parameterized.TestCase):
    """Which Hopper kernel takes a call. Only the one for few rows and keys needs nothing from the driver."""

    def _is_small(self, query, key, dtype="bfloat16", options="", multiprocessors=8):
        gpu = {emulation.DRIVER: "refusing", emulation.MULTIPROCESSORS: str(multiprocessors)}
        done = _attend(query, key, dtype, options, **gpu)
        assert done.returncode == 0 or "refused a tensor map" in done.stderr, done.stderr
        return done.returncode == 0

    @parameterized.named_parameters(
        ("few", (1, 17, 1, 8), (1, 1, 1, 8), ""),
        ("most_blocks", (1, 512, 1, 64), (1, 512, 1, 64), ""),
        ("most_blocks_by_heads", (2, 64, 2, 128), (2, 512, 1, 128), ""),
        ("causal", (1, 65, 2, 72), (1, 65, 1, 72), "is_causal=True"),
        ("window", (1, 65, 2, 72), (1, 65, 1, 72), "local_window_size=3"),
    )
    def test_the_small_kernel_takes(self, query, key, options):
        assert self._is_small(query, key, "bfloat16", options)
        assert self._is_small(query, key, "float16", options)

    @parameterized.named_parameters(
        ("one_row_more", (1, 513, 1, 64), (1, 512, 1, 64)),
        ("one_head_more", (1, 64, 9, 64), (1, 512, 1, 64)),
        ("one_element_more", (9, 64, 1, 64), (9, 512, 1, 64)),
        ("one_row_more_of_128_channels", (1, 257, 1, 128), (1, 512, 1, 128)),
        ("one_key_more", (1, 64, 1, 64), (1, 513, 1, 64)),
        ("more_channels", (1, 64, 1, 136), (1, 64, 1, 136)),
    )
    def test_the_other_takes(self, query, key):
        assert not self._is_small(query, key)

    def test_the_number_of_multiprocessors_counts(self):
        assert [self._is_small((1, 64, 2, 64), (1, 64, 2, 64), multiprocessors=n) for n in (1, 2)] == [False, True]


class DriverTest(parameterized.TestCase):
    @parameterized.parameters(
        ("old", "the driver has no cuTensorMapEncodeTiled; use one of CUDA 12.0 or newer"),
        ("refusing", "the driver refused a tensor map (error 1)"),
    )
    def test_driver_without_tensor_maps_is_reported(self, driver, message):
        done = _attend((1, 8, 2, 64), (1, 8, 2, 64), "bfloat16", "", **{emulation.DRIVER: driver})
        assert done.returncode == 1
        assert message in done.stderr
        assert "T=8" in done.stderr.partition(message)[2]


class ControlTest(parameterized.TestCase):
    @parameterized.parameters(
        ("kernels/attention_fwd_sm80.cuh", r"__syncthreads\(\);(?=  // all copies of this tile are seen)", _AMPERE),
        ("device/tile_ring.cuh", r"(?<=uint32_t take\(int i\) const {)\s*wait_for_phase\(.*\);", _HOPPER),
        ("device/block_merge.cuh", r"wait_for_phase\(barrier_, 0\);", _LARGE_HOPPER),
        ("device/block_merge.cuh", r"ptx::wait_for_cluster\(\);", _LARGE_HOPPER),
        # The rank of a block in its cluster, left in the name of an operand, is no wait, but as easily forgotten.
        ("kernels/attention_fwd_small_sm90.cuh", r"(?<=return address) % \(1u << 24\)(?=;)", _LARGE_HOPPER),
        ("kernels/attention_fwd_decode_sm90.cuh", r"wait_for_phase\(full\(place\), .*\);", _HOPPER),
        (
            *("kernels/attention_fwd_sm90_group.cuh", r"ptx::wait_for_copies<0>\(\);", _LARGE_HOPPER),
            *("test_tile_edges.py", "HopperTileEdgeTest"),  # as above, two blocks share the keys
        ),
        # Query rows that come to where an earlier item's results are still copied from.
        ("kernels/attention_fwd_sm90_group.cuh", r"ptx::wait_for_stores\(\);(?=\s*__syncwarp)", _ONE_HOPPER),
    )
    def test_a_kernel_that_does_not_wait_fails(
        self, file, waits, gpu, tests="test_forward.py", chosen="reference and bfloat16"
    ):
        with tempfile.TemporaryDirectory() as folder:
            cuda = pathlib.Path(folder, "cuda")
            shutil.copytree(ROOT / "cuda", cuda)
            text, found = re.subn(waits, "", (cuda / file).read_text(encoding="utf-8"))
            assert found == 1
            (cuda / file).write_text(text, encoding="utf-8")
            done = _pytest(emulation.library(cuda), tests, chosen, gpu)
        assert done.returncode != 0
        assert re.search("1 failed|emulator: ", done.stdout + done.stderr)


_NEVER_COME = "no thread can go on: some wait for others that never come"
_UNDER_WAY = "a thread ends with stores or products under way"
_NOT_FENCED = "a store that no fence has made known"


class MisuseTest(parameterized.TestCase):
    def _run(self, file, name):
        program = emulation.program(emulation.FOLDER / file)
        return subprocess.run([program, name], capture_output=True, text=True)

    @parameterized.parameters(
        *(("misuse.cc", "proper"), ("misuse_sm90.cc", "proper")),
        *(("misuse_sm90.cc", "proper_after_another"), ("misuse_sm90.cc", "proper_turns")),
        ("misuse_cluster.cc", "proper"),
    )
    def test_proper_kernel_ends_well(self, file, name):
        assert self._run(file, name).returncode == 0

    @parameterized.parameters(
        ("misuse.cc", "copy_that_nobody_waits_for"),
        ("misuse.cc", "missing_barrier"),
        ("misuse_sm90.cc", "box_read_too_early"),
        ("misuse_sm90.cc", "sums_read_too_early"),
        ("misuse_sm90.cc", "sums_read_with_their_group_under_way"),
        ("misuse_cluster.cc", "store_read_too_early"),
        ("misuse_sm90.cc", "launch_before_read_too_early"),
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
        ("misuse_sm90.cc", "product_of_copies_that_are_not_fenced", _NOT_FENCED),
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
        (
            *("misuse_sm90.cc", "arrival_that_nobody_waits_for"),
            "a block ends with threads that have arrived where others never come",
        ),
        (
            *("misuse_cluster.cc", "store_before_the_other_has_begun"),
            "a store to a block that may not have begun",
        ),
        (
            *("misuse_cluster.cc", "store_that_tells_its_own_block"),
            "a store to one block that tells a barrier of another",
        ),
        (
            *("misuse_cluster.cc", "store_not_aligned"),
            "an address in shared memory that is not a multiple of the size",
        ),
        ("misuse_cluster.cc", "store_under_a_store", "a store to where a copy is under way"),
        (
            *("misuse_cluster.cc", "store_that_nobody_waits_for"),
            "(a block ends with copies that nobody has waited for|a store to a block that has ended)",
        ),
        ("misuse_cluster.cc", "fewer_bytes_than_come", "a block ends with copies that nobody has waited for"),
        ("misuse_cluster.cc", "more_bytes_than_come", _NEVER_COME),
        ("misuse_cluster.cc", "barrier_not_fenced", "a barrier that no fence has made known"),
        (
            *("misuse_cluster.cc", "block_that_the_cluster_does_not_have"),
            "a block that the cluster does not have",
        ),
        (
            *("misuse_cluster.cc", "address_of_the_other_block"),
            "an address outside of the block's shared memory",
        ),
        ("misuse_cluster.cc", "arrives_twice", "a thread arrives twice without waiting for its cluster"),
        ("misuse_cluster.cc", "waits_without_arriving", "a thread waits for its cluster without arriving"),
        ("misuse_cluster.cc", "ends_without_waiting", "a thread ends without waiting for its cluster"),
        ("misuse_cluster.cc", "one_block_that_never_comes", _NEVER_COME),
        (
            *("misuse_sm90.cc", "launch_before_not_waited_for"),
            "a thread of a launch that starts early ends without waiting for the launch before",
        ),
    )
    def test_is_reported(self, file, name, message):
        done = self._run(file, name)
        assert done.returncode < 0
        assert re.search(rf"emulator: {message} \(block [0-3], thread ", done.stderr)
