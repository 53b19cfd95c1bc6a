"""Gate 1: equal counters pass, a counter that moves fails, and what is not known is not passed."""

import dataclasses
import math
import pathlib
import stat
import sys
import tempfile
import textwrap
from unittest import mock

import pytest
from absl.testing import parameterized

from dhp_jax.validate import counters, ncu, waiting
from dhp_jax.validate.calls import every_call
from dhp_jax.validate.counters import Metrics
from dhp_jax.validate.ncu import PER_ACCESS, PER_PC, CountersError, Launch, NoCountersError
from dhp_jax.validate.outcome import Status
from dhp_jax.verify import report

_SECRETS = ["random", "random", "zeros", "no keys", "random"]
_REQUESTS = PER_ACCESS["memory requests"]
_READ = Metrics({"tensor": ("tensor.sum",), "transcendental": ("xu.sum",), "requests": (_REQUESTS,)}, single=True)
_KERNEL = "_Z13attention_fwd"


def launch(kernel=_KERNEL, instances=None, threads=None, requests=(8.0, 4.0), **metrics):
    """With how often each instruction ran, in warps; in threads 32 times as often, or as is said.

    `requests` is of each instruction that uses memory.
    """
    named = {"tensor.sum": 64.0, "xu.sum": 32.0, _REQUESTS: sum(requests)}
    named |= {f"{name}.sum": value for name, value in metrics.items()}
    warps = {0: 4.0, 16: 8.0, 32: 4.0} if instances is None else instances
    threads = {pc: 32 * count for pc, count in warps.items()} if threads is None else threads
    of_accesses = {16 * index: count for index, count in enumerate(requests)}
    return Launch(kernel, named, {"inst_executed": warps, "thread_inst_executed": threads, _REQUESTS: of_accesses})


def launches(changed=None, at=2):
    """One launch for each of _SECRETS, of which one is `changed`."""
    return [changed if changed and index == at else launch() for index in range(len(_SECRETS))]


def check(found, expected=(_KERNEL,), **options):
    judged = counters.judge(found, _SECRETS, _READ, **options)
    return counters.conclude("gate 1", [judged], _READ, expected)


class JudgeTest(parameterized.TestCase):
    def test_equal_counters_pass(self):
        assert check(launches()).status is Status.PASS

    @parameterized.parameters("tensor", "xu")
    def test_a_counter_that_moves_fails_and_names_the_secret(self, name):
        found = check(launches(launch(**{name: 65.0}), at=3))
        assert found.status is Status.FAIL
        assert f"{name}.sum differs for no keys" in found.detail

    def test_an_instruction_that_ran_otherwise_fails_though_the_sums_agree(self):
        found = check(launches(launch(instances={0: 5.0, 16: 7.0, 32: 4.0})))
        assert found.status is Status.FAIL
        assert "single instructions by warps differs for zeros" in found.detail

    def test_an_instruction_that_other_threads_of_a_warp_ran_fails(self):
        found = check(launches(launch(threads={0: 128.0, 16: 256.0, 32: 127.0})), waiting={_KERNEL: frozenset({16})})
        assert found.status is Status.FAIL
        assert "by threads differs for zeros" in found.detail
        assert "by warps" not in found.detail

    @parameterized.parameters(((8.0, 5.0),), ((9.0, 3.0),))
    def test_an_instruction_with_other_requests_fails_though_the_sums_agree(self, requests):
        found = check(launches(launch(requests=requests)), waiting={_KERNEL: frozenset({16})})
        assert found.status is Status.FAIL
        assert f"{_REQUESTS} differs for zeros" in found.detail

    @parameterized.parameters("tensor", "xu")
    def test_noise_in_a_counter_is_unknown(self, name):
        found = check(launches(launch(**{name: 65.0}), at=1))
        assert found.status is Status.UNKNOWN
        assert "may not be left out" in found.detail

    @parameterized.parameters(launch(instances={0: 9.0}), launch(requests=(9.0, 3.0)))
    def test_noise_in_single_instructions_is_unknown(self, noisy):
        assert check(launches(noisy, at=4)).status is Status.UNKNOWN

    def test_failure_outweighs_what_is_unknown(self):
        found = launches(launch(tensor=65.0))
        found[1] = launch(xu=1.0)
        assert check(found).status is Status.FAIL

    @parameterized.named_parameters(
        ("no_number", launch(tensor=math.nan)),
        ("missing", dataclasses.replace(launch(), metrics={})),
        ("no_requests", launch(requests=(math.nan,))),
        ("no_instructions", launch(instances={})),
        ("no_instructions_in_threads", launch(threads={})),
    )
    def test_what_cannot_be_read_is_unknown(self, odd):
        assert check(launches(odd)).status is Status.UNKNOWN

    def test_a_group_that_counts_nothing_is_unknown(self):
        found = check([launch(tensor=0.0) for _ in _SECRETS])
        assert found.status is Status.UNKNOWN
        assert "nothing for tensor" in found.detail.replace("anything", "nothing")

    def test_no_kernel_is_unknown(self):
        assert check([]).status is Status.UNKNOWN
        assert check([], expected=()).status is Status.UNKNOWN

    def test_a_kernel_that_never_ran_is_unknown(self):
        found = check(launches(), expected=(_KERNEL, "_Z13attention_bwd"))
        assert found.status is Status.UNKNOWN
        assert "_Z13attention_bwd: it never ran" in found.detail

    def test_launches_that_do_not_fit_the_runs_are_unknown(self):
        assert check(launches()[:-1]).status is Status.UNKNOWN

    def test_a_kernel_may_run_twice_in_a_call(self):
        twice = [launch(tensor=value) for _ in _SECRETS for value in (64.0, 128.0)]
        assert check(twice).status is Status.PASS
        twice[5] = launch(tensor=129.0)
        assert check(twice).status is Status.FAIL

    def test_waiting_loops_may_repeat_as_they_please(self):
        found = launches(launch(instances={0: 4.0, 16: 99.0, 32: 4.0}))
        assert check(found, waiting={_KERNEL: frozenset({16})}).status is Status.PASS
        assert check(found, waiting={_KERNEL: frozenset({32})}).status is Status.FAIL

    def test_totals_are_compared_where_loops_wait_too(self):
        assert check(launches(launch(xu=33.0)), waiting={_KERNEL: frozenset({16})}).status is Status.FAIL

    def test_a_waiting_loop_reaches_from_its_label_to_its_branch(self):
        back = report.Branch(96, "@!P0 BRA `(.L_x_4)", "wait", None)
        ahead = report.Branch(32, "@P0 BRA `(.L_x_9)", "wait", None)
        places = {_KERNEL: waiting.Places({".L_x_4": 64, ".L_x_9": 160}, frozenset())}
        assert waiting.loops([(_KERNEL, back), (_KERNEL, ahead)], places) == {_KERNEL: {64, 80, 96}}
        assert waiting.loops([("another", back)], places) == {}

    @parameterized.parameters(
        ({48, 112}, (), {64, 80, 96, 112}),  # between jumps: only a first look that failed leads there
        ({112}, {48}, {64, 80, 96, 112}),  # the same behind the end of the kernel
        ({112}, (), {64, 80, 96}),  # what comes before falls into it: the jump behind it runs in any case
        ({48}, (), {64, 80, 96}),
        ({48}, {112}, {64, 80, 96}),
    )
    def test_a_loop_out_of_line_has_the_jump_that_leads_back(self, jumps, exits, expected):
        back = report.Branch(96, "@!P0 BRA `(.L_x_4)", "wait", None)
        places = {_KERNEL: waiting.Places({".L_x_4": 64}, frozenset(jumps), frozenset(exits))}
        assert waiting.loops([(_KERNEL, back)], places) == {_KERNEL: expected}

    def test_places_are_those_of_a_listing(self):
        listing = (
            ".text.kernel:",
            "        /*0000*/                   BRA `(.L_x_1) ;   /* 0x0000000000047947 */",
            "                                                     /* 0x000fea0003800000 */",
            '        //## File "kernel.cu", line 7',
            ".L_x_0:",
            "        /*0010*/              @!P0 BRA `(.L_x_0) ;   /* 0x00000000001c8947 */",
            "                                                     /* 0x000fea0003800000 */",
            "        /*0020*/              @!P1 BRA P2, `(.L_x_0) ;   /* 0x00000000001c8947 */",
            "                                                     /* 0x000fea0003800000 */",
            ".L_x_1:",
            "        /*0030*/               @P0 EXIT ;            /* 0x000000000000794d */",
            "        /*0040*/                   EXIT ;            /* 0x000000000000794d */",
        )
        assert waiting.places(listing) == waiting.Places({".text.kernel": 0, ".L_x_0": 16, ".L_x_1": 48}, {0}, {64})

    def test_a_run_without_equal_inputs_is_refused(self):
        with pytest.raises(ValueError, match="needs two runs with equal inputs"):
            counters.judge([], ["random", "zeros"], _READ)


class ControlTest(parameterized.TestCase):
    def judged(self, **seen):
        """By two ways to look, of which each saw the leak or did not."""
        return counters.judge_control(
            {
                kind: counters.judge(launches(launch(xu=9.0) if saw else None), _SECRETS, _READ)
                for kind, saw in seen.items()
            }
        )

    def test_a_leak_is_seen(self):
        assert self.judged(executions=True, counters=True).status is Status.PASS

    @parameterized.parameters((False, True, "executions"), (True, False, "counters"), (False, False, "executions and"))
    def test_a_leak_that_one_does_not_see_voids(self, executions, of_hardware, blind):
        found = self.judged(executions=executions, counters=of_hardware)
        assert (found.status, found.is_control) == (Status.FAIL, True)
        assert f"not seen by {blind}" in found.detail


class MetricTest(parameterized.TestCase):
    def test_the_first_pattern_that_the_gpu_has_counts(self):
        known = [
            "sm__inst_executed_pipe_tensor_op_hmma",
            "smsp__inst_executed_pipe_tensor",
            "sm__inst_executed_pipe_xu",
        ]
        known += ["smsp__inst_executed", "sm__inst_executed_pipe_tensor_op_hmma_pred_on"]
        found = counters.metrics(known)
        assert found.groups["tensor"] == ("sm__inst_executed_pipe_tensor_op_hmma.sum",)
        assert found.groups["LSU sectors"] == ()
        assert found.all() == ["sm__inst_executed_pipe_tensor_op_hmma.sum", "sm__inst_executed_pipe_xu.sum"]
        assert found.of_hardware

    @parameterized.parameters("l1tex__data_pipe_lsu_wavefronts_mem_shared", "smsp__inst_executed")
    def test_what_counts_waiting_loops_is_no_counter(self, name):
        assert counters.metrics([name]).all() == []

    def test_executions_are_read_with_what_instructions_ask_of_memory(self):
        asked = ["memory_l1_wavefronts_shared", "memory_l1_tag_requests_global"]
        assert counters.EXECUTIONS.all() == [*asked, *PER_PC]

    def test_executions_are_no_counters_of_the_hardware(self):
        assert not counters.EXECUTIONS.of_hardware

    def test_only_executions_are_read_where_nothing_else_is_asked_for(self):
        read = dataclasses.replace(_READ, single=False)
        found = launches(launch(instances={0: 5.0}))
        assert counters.judge(found, _SECRETS, read).findings == ()


class ProgramTest(parameterized.TestCase):
    @parameterized.parameters(2, 6)
    def test_a_process_has_few_calls_with_the_same_runs(self, most):
        programs = counters.programs(every_call(), most)
        assert sorted(map(repr, every_call())) == sorted(repr(call) for program in programs for call in program)
        for program in programs:
            assert len(program) <= most
            assert len({call.mixtures() for call in program}) == 1
        assert len(programs) < 1.5 * len(every_call()) / most

    def test_six_runs_have_all(self):
        assert max(3 + len(call.mixtures()) for call in every_call()) == 6


_TABLE = f"""\
==PROF== Connected to process 7
"ID","Process ID","Kernel Name","a__b","sm__a.sum","inst_executed","thread_inst_executed","{_REQUESTS}"
"","","","","inst","inst","inst",""
"0","7","_Z13attention_fwd","a","1,024","16 (4; 8; 4)","385 (128; 256; 1)","2,048 (0; 2,048; 0)"
"1","7","_Z13attention_fwd","b","n/a","1,016 (0x10: 1,000; 0x20: 16)","8","0"
"""


class TableTest(parameterized.TestCase):
    def test_values_and_instances(self):
        first, second = ncu.parse(_TABLE)
        assert first.kernel == _KERNEL
        assert first.metrics["sm__a.sum"] == 1024
        assert first.instances["inst_executed"] == {0: 4, 16: 8, 32: 4}
        assert first.instances["thread_inst_executed"] == {0: 128, 16: 256, 32: 1}
        assert [each.metrics[_REQUESTS] for each in (first, second)] == [2048, 0]
        assert first.instances[_REQUESTS] == {0: 0, 16: 2048, 32: 0}
        assert math.isnan(second.metrics["sm__a.sum"])
        assert second.metrics["inst_executed"] == 1016
        assert second.instances["inst_executed"] == {16: 1000, 32: 16}

    def test_no_table_is_no_launch(self):
        assert ncu.parse("==WARNING== No kernels were profiled.\n") == []

    def test_a_table_without_names_is_refused(self):
        with pytest.raises(CountersError, match="without kernel names"):
            ncu.parse('"ID","a__b"\n"0","1"\n')


_FAKE = """\
#!{python}
import pathlib, sys
arguments = sys.argv[1:]
if "--query-metrics" in arguments:
    print("sm__a          Counter  inst")
    sys.exit()
{body}
"""
_WRITES = 'pathlib.Path(arguments[arguments.index("--log-file") + 1]).write_text({table!r})'


class ToolTest(parameterized.TestCase):
    """With a program in the place of ncu."""

    def use(self, body, alone=True, flushed=False):
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        program = folder / "ncu"
        program.write_text(_FAKE.format(python=sys.executable, body=textwrap.dedent(body)))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.enter_context(mock.patch.object(ncu, "tool", return_value=str(program)))
        log = folder / "log.csv"
        return ncu.run(["--suite"], ["sm__a.sum"], "^attention_", log, alone=alone, flushed=flushed)

    def test_launches_are_read_from_what_it_writes(self):
        assert len(self.use(_WRITES.format(table=_TABLE))) == 2

    @parameterized.parameters((True, 1), (False, 0))
    def test_those_that_need_not_be_alone_have_a_lock_of_their_own(self, alone, same):
        body = f"""\
            import tempfile
            same = int(tempfile.gettempdir() == {tempfile.gettempdir()!r})
            table = '"ID","Kernel Name","sm__a.sum"' + chr(10) + f'"0","k","{{same}}"'
            pathlib.Path(arguments[arguments.index("--log-file") + 1]).write_text(table)"""
        assert self.use(body, alone)[0].metrics["sm__a.sum"] == same

    @parameterized.parameters((True, "all"), (False, "none"))
    def test_caches_are_flushed_where_that_is_asked_for(self, flushed, control):
        body = """\
            table = '"ID","Kernel Name","' + arguments[arguments.index("--cache-control") + 1] + '__a.sum"'
            table += chr(10) + '"0","k","7"'
            pathlib.Path(arguments[arguments.index("--log-file") + 1]).write_text(table)"""
        assert self.use(body, flushed=flushed)[0].metrics == {f"{control}__a.sum": 7}

    def test_known_metrics(self):
        self.use(_WRITES.format(table=_TABLE))
        assert ncu.known_metrics() == {"sm__a"}

    def test_without_permission_nothing_is_known(self):
        with pytest.raises(NoCountersError, match="no permission"):
            self.use('print("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"); sys.exit(1)')

    def test_a_child_that_fails_is_told(self):
        with pytest.raises(CountersError, match="status 5"):
            self.use("sys.exit(5)")

    def crash(self, times, said=""):
        """That many times, at the first attempts."""
        count = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()), "count")
        body = f"""\
            import os, signal
            count = pathlib.Path({str(count)!r})
            done = len(count.read_text()) if count.exists() else 0
            count.write_text("." * (done + 1))
            if done < {times}:
                print({said!r}, flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            """
        return lambda: self.use(textwrap.dedent(body) + _WRITES.format(table=_TABLE)), count

    def test_a_crash_of_the_tool_is_followed_by_another_run(self):
        run, count = self.crash(1)
        assert len(run()) == 2
        assert count.read_text() == ".."

    @parameterized.parameters((2, ""), (1, "==ERROR== The application returned an error code (11)."))
    def test_a_second_crash_or_one_of_the_child_is_told(self, times, said):
        run, count = self.crash(times, said)
        with pytest.raises(CountersError, match="status -11"):
            run()
        assert len(count.read_text()) == times

    def test_without_the_tool_nothing_is_known(self):
        self.enter_context(mock.patch.object(ncu.shutil, "which", return_value=None))
        self.enter_context(mock.patch.object(ncu, "_PLACES", ()))
        with pytest.raises(NoCountersError, match="not on the PATH"):
            ncu.tool()
