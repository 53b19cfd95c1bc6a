"""The parts that need a GPU, with something in its place: what they measure goes the whole way to a check."""

import pathlib
import re
import tempfile
from unittest import mock

import numpy as np
from absl.testing import parameterized

from dhp_jax.validate import _controls, counters, gpu, ncu, proof, repeat, roofline, timing
from dhp_jax.validate.calls import Call
from dhp_jax.validate.ncu import CountersError, Launch, NoCountersError
from dhp_jax.validate.outcome import Status
from dhp_jax.validate.plan import Context

_SMS = 4
_KNOWN = (
    "sm__inst_executed_pipe_tensor_op_hmma",
    "sm__inst_executed_pipe_xu",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld",
    "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared",
)


def device(shifts=None):
    """In the place of _controls.time_call: `shifts` is cycles of a call by (class, work)."""

    def time_call(call, work, classes, order, waits=None, repeats=1, rest=0):
        rng = np.random.default_rng(len(order) + work)
        cycles = 30_000 + 30 * rng.standard_normal((len(order), 1)) + rng.standard_normal((len(order), _SMS))
        for index in range(len(classes)):
            added = (shifts or {}).get((index, work), 0) + (waits or [0] * len(classes))[index]
            cycles[order == index] += added
        return np.rint(repeats * cycles).astype(np.int32), np.full(len(order), 20_000 * repeats)

    return time_call


def executions(counts):
    """Of each instruction, in every unit."""
    return {metric: counts for metric in ncu.PER_PC}


class PartTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(mock.patch.object(_controls, "objection", return_value=""))
        small = tuple(Call("bfloat16", 8, operands, B=1, T=4, S=6, N=2, K=1) for operands in (False, True))
        self.enter_context(mock.patch.object(timing, "CALLS", small))
        self.enter_context(mock.patch.object(gpu, "architecture", return_value="sm_90a"))

    def context(self, quick=True):
        return Context(self.folder, quick)


class TimingTest(PartTest):
    def test_equal_times_pass(self):
        with mock.patch.object(_controls, "time_call", device()):
            (check,) = timing.run(self.context())
        assert check.status is Status.PASS, check.detail
        assert set(check.figures["calls"]) == {"bfloat16-8-operands forward", "bfloat16-8-operands backward"}

    def test_a_class_that_takes_longer_in_the_backward_pass_fails(self):
        with mock.patch.object(_controls, "time_call", device({(2, _controls.BACKWARD): 20})):
            (check,) = timing.run(self.context())
        assert check.status is Status.FAIL
        assert "backward: time depends on secrets: reversed" in check.detail

    @parameterized.parameters((200, Status.PASS), (400, Status.FAIL))
    def test_what_power_makes_is_reported_and_no_more(self, cycles, status):
        with mock.patch.object(_controls, "time_call", device({(3, _controls.FORWARD): -cycles})):
            (check,) = timing.run(self.context())
        assert check.status is status
        told = f"differ by up to {cycles / 300:.2f} %: power" if status is Status.PASS else "secrets: zeros -40"
        assert told in check.detail

    def test_controls(self):
        leak = mock.patch.object(
            _controls, "time_leak", lambda lengths, order: device({(1, 9): -5000})(None, 9, lengths, order)
        )
        with leak, mock.patch.object(_controls, "time_call", device()):
            (check,) = timing.controls(self.context())
        assert check.status is Status.PASS
        with leak, mock.patch.object(_controls, "time_call", lambda *a: device()(*a[:4], None, a[5])):
            (check,) = timing.controls(self.context())
        assert check.status is Status.FAIL

    def test_wall_clock_is_told_beside_cycles(self):
        def measure(call, work, classes, order):
            return np.full((len(order), _SMS), 1000, np.int32), np.where(order == 1, 900, 1000)

        with mock.patch.object(_controls, "time_call", measure), mock.patch.object(Call, "arrays", return_value={}):
            (check,) = timing.wall_clock(self.context())
        assert "-10.00 % of time, +0.00 % of cycles" in check.detail


class CounterTest(PartTest):
    KERNELS = ("_ZN3dhp18attention_fwd_sm80IDTypeE1E", "_ZN3dhp19attention_bwd_deltaIDTypeE1E")
    PARTS = (counters.executions, counters.hardware)

    def gate(self, part, launch, known=_KNOWN, names=KERNELS):
        """One part of the gate, where `launch` says what a kernel counts for a sort of secrets."""

        def run(arguments, metrics, kernels, log, *, alone, flushed):
            assert alone == (part is counters.hardware)
            assert not flushed
            secrets = arguments[arguments.index("--secrets") + 1].split(",")
            return [Launch(kernel, *launch(metrics, secret)) for secret in secrets for kernel in self.KERNELS]

        with (
            mock.patch.object(ncu, "known_metrics", return_value=frozenset(known)),
            mock.patch.object(ncu, "run", run),
            mock.patch.object(ncu, "tool", return_value="ncu"),
            mock.patch.object(counters, "waiting_loops", return_value={}),
            mock.patch.object(proof, "names", return_value=list(names)),
        ):
            (check,) = part(self.context())
        return check

    @staticmethod
    def equal(metrics, secret):
        return dict.fromkeys(metrics, 8.0), executions({0: 4.0, 16: 4.0})

    @parameterized.parameters(*PARTS)
    def test_equal_counters_pass(self, part):
        check = self.gate(part, self.equal)
        assert check.status is Status.PASS, check.detail
        assert check.figures["kernels"] == sorted(self.KERNELS)

    @parameterized.parameters(*PARTS)
    def test_a_kernel_that_never_ran_is_unknown(self, part):
        check = self.gate(part, self.equal, names=[*self.KERNELS, "_ZN3dhp18attention_fwd_sm90IDTypeE2E"])
        assert check.status is Status.UNKNOWN
        assert "sm90IDTypeE2E: it never ran" in check.detail

    @parameterized.parameters(*PARTS)
    def test_a_length_that_is_seen_fails(self, part):
        def launch(metrics, secret):
            counts, instances = self.equal(metrics, secret)
            if "half the keys" not in secret:
                return counts, instances
            return counts | {"sm__inst_executed_pipe_xu.sum": 4.0}, executions({0: 4.0, 16: 3.0})

        check = self.gate(part, launch)
        assert check.status is Status.FAIL
        assert "differs for no keys+one key+half the keys+all keys" in check.detail

    def test_a_gpu_without_a_metric_is_unknown(self):
        assert self.gate(counters.hardware, self.equal, _KNOWN[1:]).status is Status.UNKNOWN

    @parameterized.parameters((NoCountersError("none"), Status.SKIPPED), (CountersError("odd"), Status.UNKNOWN))
    def test_what_cannot_be_read_is_no_pass(self, problem, status):
        with mock.patch.object(ncu, "known_metrics", side_effect=problem):
            for function in (counters.hardware, counters.controls):
                (check,) = function(self.context())
                assert check.status is status
        with mock.patch.object(ncu, "tool", side_effect=problem):
            (check,) = counters.executions(self.context())
            assert check.status is status

    def test_control(self):
        def run(arguments, metrics, kernels, log, *, alone, flushed):
            lengths = [int(n) for n in re.findall(r"length (\d+)", arguments[-1])]
            return [Launch("control_leak", dict.fromkeys(metrics, n), executions({0: n})) for n in lengths]

        with mock.patch.object(ncu, "known_metrics", return_value=frozenset(_KNOWN)):
            with mock.patch.object(ncu, "run", run):
                (check,) = counters.controls(self.context())
            assert check.status is Status.PASS
            with mock.patch.object(ncu, "run", return_value=[]):
                (check,) = counters.controls(self.context())
            assert check.status is Status.FAIL


class RepeatTest(PartTest):
    def test_control(self):
        order = iter(range(1000))
        with mock.patch.object(_controls, "unordered_sum", side_effect=lambda values: np.float32(next(order) % 3)):
            (check,) = repeat.controls(self.context())
        assert (check.status, check.figures) == (Status.PASS, {"different": 3})
        with mock.patch.object(_controls, "unordered_sum", return_value=np.float32(1)):
            (check,) = repeat.controls(self.context())
        assert check.status is Status.FAIL


class RooflineTest(PartTest):
    def run_part(self, metrics):
        def run(arguments, names, kernels, log, *, alone, flushed):
            assert alone
            assert flushed
            return [Launch("18attention_fwd_sm80I", metrics(names), {})]

        with (
            mock.patch.object(ncu, "known_metrics", return_value=frozenset({"dram__throughput", "sm__inst_issued"})),
            mock.patch.object(ncu, "run", run),
        ):
            (check,) = roofline.run(self.context())
        return check

    def test_every_call_is_placed(self):
        check = self.run_part(lambda names: dict.fromkeys(names, 1e6))
        assert check.status is Status.PASS
        assert len(check.figures["kernels"]) == len(roofline.CALLS)

    def test_a_missing_metric_is_unknown(self):
        assert self.run_part(lambda names: {}).status is Status.UNKNOWN
