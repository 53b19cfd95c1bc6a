"""The installed CPU kernels are constant-time as far as each check can see, and each check sees its controls."""

import functools
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import unittest.mock

import pytest
from absl.testing import parameterized

from dhp_jax.verify.host import command, counts, driver, machine_code, memcheck, subnormals
from dhp_jax.verify.host.elf import Elf
from dhp_jax.verify.host.x86 import Decoder
from dhp_jax.verify.verdict import UnverifiableError, Verdict

UNDER_VALGRIND = ("baseline",) if platform.machine() == "aarch64" else ("baseline", "avx2")
ALL = ("baseline",) if platform.machine() == "aarch64" else ("baseline", "avx2", "avx512")


def skip(reason):
    """Skips; in CI, which has what is needed, it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(f"SKIPPED: {reason}")


@functools.cache
def installed():
    try:
        return driver.find()
    except UnverifiableError as error:
        return skip(str(error))


def require_valgrind():
    if shutil.which("valgrind") is None:
        skip("valgrind is not installed (apt-get install valgrind)")


def require_x86():
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("SKIPPED: the machine-code check knows x86-64 only")


def require_runnable(kernels):
    if not installed().kernels()[kernels]:
        pytest.skip(f"SKIPPED: this processor does not run {kernels}")


def one_dtype_each(calls):
    """Every case once, the dtypes in turn."""
    return [call for i, call in enumerate(calls) if i % 3 == i // 3 % 3]


def verdicts(results):
    return {(result.kernel, result.evidence): result.verdict for result in results}


def assert_safe(results):
    assert results
    assert [(result, result.findings) for result in results if result.verdict is not Verdict.SAFE] == []


class UndefinedTest(parameterized.TestCase):
    """With every array undefined, no branch and no address depends on undefined values."""

    def setUp(self):
        super().setUp()
        require_valgrind()

    @parameterized.parameters(*UNDER_VALGRIND)
    def test_every_case_is_clean(self, kernels):
        require_runnable(kernels)
        calls = one_dtype_each(installed().calls())
        assert len({call.name.rpartition("_")[0] for call in calls}) * 3 == len(installed().calls())
        assert_safe(memcheck.check(installed(), kernels, calls))

    @parameterized.parameters(*UNDER_VALGRIND)
    def test_it_is_clean_with_lent_threads(self, kernels):
        require_runnable(kernels)
        calls = [call for call in installed().calls() if call.name == "everything_float16"]
        assert_safe(memcheck.check(installed(), kernels, calls, num_threads=3))

    @parameterized.parameters(*UNDER_VALGRIND)
    def test_every_control_is_reported(self, kernels):
        require_runnable(kernels)
        assert memcheck.check_controls(installed(), kernels) == []

    def test_a_control_is_no_safe_kernel(self):
        calls = [call for call in installed().calls() if call.name == memcheck.CONTROL_CALL]
        results = memcheck.check(installed(), "baseline:branch_on_score", calls)
        assert verdicts(results)["fwd", memcheck.EVIDENCE] is Verdict.LEAK


class CountsTest(parameterized.TestCase):
    """Every instruction is executed equally often, whatever the secrets."""

    def setUp(self):
        super().setUp()
        require_valgrind()

    @parameterized.parameters(*UNDER_VALGRIND)
    def test_counts_are_equal_for_every_sort_of_secret(self, kernels):
        require_runnable(kernels)
        assert_safe(counts.check(installed(), kernels, ["small_float32", "small_bfloat16", "decode_float16"], []))

    @parameterized.parameters(*UNDER_VALGRIND)
    def test_counts_are_equal_for_every_length(self, kernels):
        require_runnable(kernels)
        assert_safe(counts.check(installed(), kernels, [], ["both_lengths_float32"]))

    @parameterized.parameters(*UNDER_VALGRIND)
    def test_counts_of_controls_differ(self, kernels):
        require_runnable(kernels)
        assert counts.check_controls(installed(), kernels) == []


class MachineCodeTest(parameterized.TestCase):
    """No path through the installed machine code lets a secret reach a branch, an address or a slow instruction."""

    def setUp(self):
        super().setUp()
        require_x86()

    @parameterized.parameters(*ALL)
    def test_kernels_are_safe(self, kernels):
        results, reached = machine_code.check(installed().library, kernels)
        assert [result.kernel for result in results] == ["fwd", "bwd", "bwd_bias"]
        assert len(reached) > 1000
        assert_safe(results)

    @parameterized.parameters(*ALL)
    def test_every_control_is_reported(self, kernels):
        assert machine_code.check_controls(installed().program, installed().library, kernels) == []

    @parameterized.parameters(*UNDER_VALGRIND)
    def test_all_that_is_executed_was_walked(self, kernels):
        require_valgrind()
        require_runnable(kernels)
        calls = ["plain_float32", "bias_heads_bfloat16", "mask_keys_float16", "both_lengths_float32"]
        assert_safe(command.check_coverage(installed(), kernels, calls))

    def test_code_that_was_not_walked_is_reported(self):
        require_valgrind()
        results, reached = machine_code.check(installed().library, "baseline")
        executed = counts.covered(installed(), "baseline", ["one_position_float32"])
        missed = max(executed)
        with unittest.mock.patch.object(machine_code, "check", return_value=(results, reached - {missed})):
            (result,) = command.check_coverage(installed(), "baseline", ["one_position_float32"])
        assert result.verdict is Verdict.UNKNOWN
        assert [(finding.rule, finding.place) for finding in result.findings] == [("not-reached", hex(missed))]

    @parameterized.parameters("avx2", "avx512")
    def test_an_addition_turned_into_a_division_is_reported(self, kernels):
        """In copies of the library, one instruction at a time: the opcode of vaddps is 58, of vdivps 5E."""
        elf = Elf(installed().library)
        decoder, whole = Decoder(elf), installed().library.read_bytes()
        (found,) = [found for found in machine_code.tables(elf) if found.name == kernels]
        _, reached = machine_code.judge(elf, decoder, found, "bwd_bias", machine_code.task_arguments(elf))
        additions = [address for address in sorted(reached) if decoder.at(address).name == "VADDPS"]
        for address in (additions[0], additions[len(additions) // 2], additions[-1]):
            code = elf.read(address, 24)
            place = whole.index(code) + {0xC5: 2, 0xC4: 3, 0x62: 4}[code[0]]  # after the prefix
            assert whole[place] == 0x58
            with tempfile.TemporaryDirectory() as folder:
                mutant = pathlib.Path(folder, "libdhp_kernels.so")
                mutant.write_bytes(whole[:place] + b"\x5e" + whole[place + 1 :])
                mutated = Elf(mutant)
                result, _ = machine_code.judge(mutated, Decoder(mutated), found, "bwd_bias", "pn{ss}")
            assert ("secret-latency", hex(address)) in {(f.rule, f.place) for f in result.findings}


class SameCodeTest(parameterized.TestCase):
    """What runs is the library that is judged, byte for byte."""

    def test_the_driver_runs_the_library_beside_it(self):
        needed = subprocess.run(["ldd", installed().program], capture_output=True, text=True, check=True).stdout
        (line,) = [line for line in needed.splitlines() if "libdhp_kernels" in line]
        assert pathlib.Path(line.split()[2]).samefile(installed().library)

    def test_a_driver_that_runs_another_library_is_refused(self):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
            shutil.copy(installed().program, folder)
            for place in (folder, other):
                shutil.copy(installed().library, place)
            done = run_command(
                "--host", f"--folder={folder}", LD_LIBRARY_PATH=other, LD_PRELOAD=f"{other}/libdhp_kernels.so"
            )
        assert "the one that is judged" in done.stdout
        assert "leave LD_LIBRARY_PATH and LD_PRELOAD unset" in done.stdout
        assert done.returncode == 2

    def test_the_driver_has_no_kernels_of_its_own(self):
        program = installed().program.read_bytes()
        assert b"host_attention_fwd" in program  # imported
        assert b"attention_fwd_task" not in program


def times_of_a_run(subnormal):
    times = {("ordinary", "flushed"): [100.0], ("ordinary", "unflushed"): [100.0], ("ordinary", "delayed"): [112.0]}
    slow = [(secret, how) for secret in ("subnormal", "subnormal_keys") for how in ("flushed", "unflushed")]
    return times | {way: [subnormal] for way in slow}


class SubnormalTest(parameterized.TestCase):
    @parameterized.parameters(*ALL)
    def test_subnormals_are_flushed_and_cost_nothing(self, kernels):
        require_runnable(kernels)
        results = subnormals.check(installed(), kernels, "bias_full_float32", ["bias_full_float32", "plain_bfloat16"])
        print(*[result.detail for result in results], sep="\n")
        assert_safe(results)

    def test_a_kernel_that_is_slow_on_subnormals_is_reported(self):
        result = subnormals._judge("avx2", "fwd", {"flushed": 0, "unflushed": 9}, times_of_a_run(subnormal=130.0))
        assert [finding.rule for finding in result.findings] == ["slow-subnormals"]

    def test_a_processor_without_the_penalty_is_named(self):
        result = subnormals._judge("avx2", "fwd", {"flushed": 0, "unflushed": 9}, times_of_a_run(subnormal=100.0))
        assert result.verdict is Verdict.SAFE
        assert "this processor has no penalty here" in result.detail

    @parameterized.parameters(({"flushed": 3, "unflushed": 9}, "not-flushed"), ({"flushed": 0}, "missed-control"))
    def test_a_missing_flush_is_reported(self, nonzero, rule):
        result = subnormals._judge("avx2", "fwd", nonzero, times_of_a_run(subnormal=100.0))
        assert [finding.rule for finding in result.findings] == [rule]

    def test_a_kernel_without_times_is_unknown(self):
        assert subnormals._judge("avx2", "fwd", {"flushed": 0, "unflushed": 9}, {}).verdict is Verdict.UNKNOWN


def run_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-m", "dhp_jax.verify", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


class CommandTest(parameterized.TestCase):
    def test_verdict_and_exit_status_of_kernels_that_are_safe(self):
        require_x86()
        done = run_command("--host", "--json", "--evidence=machine-code", "--kernels=avx2")
        report = json.loads(done.stdout)
        assert report["sha256"] == machine_code.digest(installed().library)
        assert [(row["kernel"], row["verdict"]) for row in report["results"]] == [
            ("fwd", "SAFE"),
            ("bwd", "SAFE"),
            ("bwd_bias", "SAFE"),
        ]
        assert (report["verdict"], done.returncode) == ("SAFE", 0)

    def test_exit_status_of_a_leak_is_1(self):
        require_x86()
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(installed().program, folder)
            library = installed().library.read_bytes()
            at = library.index(machine_code.task_arguments(Elf(installed().library)).encode() + b"\0")
            library = library[:at] + b"nnn\0" + library[at + 4 :]  # now all that tasks are passed is foreign memory
            pathlib.Path(folder, "libdhp_kernels.so").write_bytes(library)
            done = run_command("--host", f"--folder={folder}", "--evidence=machine-code", "--kernels=avx2")
        assert "LEAK secret-address" in done.stdout
        assert done.returncode == 1

    def test_without_valgrind_it_says_skipped_and_how_to_install_it(self):
        done = run_command("--host", "--evidence=undefined", "--kernels=baseline", PATH="")
        assert "SKIPPED: valgrind is not installed" in done.stdout
        assert "apt-get install valgrind" in done.stdout
        assert done.returncode == 2

    def test_without_the_driver_it_says_how_to_get_it(self):
        with tempfile.TemporaryDirectory() as folder:
            done = run_command("--host", f"--folder={folder}")
        assert "dhp_host_proof and libdhp_kernels.so are not in" in done.stdout
        assert "Install dhp_jax again" in done.stdout
        assert done.returncode == 2

    def test_a_broken_library_is_unknown(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(installed().program, folder)
            library = pathlib.Path(folder, "libdhp_kernels.so")
            library.write_bytes(installed().library.read_bytes()[:50_000])
            done = run_command("--host", f"--folder={folder}", "--kernels=baseline")
        assert "verdict: UNKNOWN" in done.stdout
        assert "SAFE" not in done.stdout
        assert done.returncode == 2

    def test_kernels_that_are_not_there_are_named(self):
        done = run_command("--host", "--kernels=avx3")
        assert "--kernels avx3 was passed; the library has kernels for baseline" in done.stdout
        assert done.returncode == 2

    def test_a_defect_of_the_check_is_no_verdict(self):
        with unittest.mock.patch.object(command, "find", side_effect=RuntimeError("a defect")):
            assert command.main([]) == 2


class DriverMessageTest(parameterized.TestCase):
    @parameterized.parameters(
        (["sing"], "mode sing was passed; it must be one of list, undefined"),
        (["flush", "--loud"], "unknown argument --loud"),
        (["time", "--rounds=many"], "--rounds=many was passed; its value must be a number from 0 to 1000"),
        (["flush", "--kernels=avx3"], "--kernels=avx3 was passed; this processor"),
        (["undefined"], "undefined must run under valgrind"),
    )
    def test_driver_says_what_is_wrong(self, arguments, message):
        done = subprocess.run([installed().program, *arguments], capture_output=True, text=True, check=False)
        assert f"dhp_host_proof: {message}" in done.stderr
        assert done.returncode == 2

    def test_a_run_that_stops_early_is_unknown(self):
        with pytest.raises(UnverifiableError, match="stopped early with status 2"):
            installed().run("flush", "--kernels=avx3")
