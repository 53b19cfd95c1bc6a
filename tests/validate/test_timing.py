"""The timing test: equal times pass, a few cycles more fail, and a restless machine bears no verdict."""

import itertools

import numpy as np
import pytest
from absl.testing import parameterized

from dhp_jax.validate import _controls, statistics, timing
from dhp_jax.validate.calls import Call
from dhp_jax.validate.outcome import Status

_RUNS = 4000


def cycles(seed, shift=0.0, runs=_RUNS):
    """Times as a GPU has them: an integer, a spread of 40 cycles, and a tail upward."""
    rng = np.random.default_rng(seed)
    tail = np.where(rng.random(runs) < 0.02, rng.exponential(3000, runs), 0)
    return np.rint(20_000 + shift + 40 * rng.standard_normal(runs) + tail)


def measure(shifts, quiet=True):
    """A measurement whose classes have these shifts; each seed gives other values."""

    def run(seed):
        names = ["random", "random again", *shifts]
        drift = {} if quiet else {"random again": 200.0}
        return {name: cycles(17 * seed + i, {**shifts, **drift}.get(name, 0)) for i, name in enumerate(names)}

    return run


class StatisticsTest(parameterized.TestCase):
    def test_equal_samples_do_not_differ(self):
        found = statistics.difference(cycles(1), cycles(2))
        assert abs(found.t) < statistics.SUSPICIOUS
        assert found.within(64)

    def test_64_cycles_are_certain(self):
        found = statistics.difference(cycles(1), cycles(2, 64))
        assert found.t > statistics.CERTAIN
        assert 60 < found.mean < 68
        assert not found.within(64)

    def test_a_difference_in_the_tail_alone_is_seen(self):
        slow = cycles(2)
        slow[::50] += 5000
        assert abs(statistics.difference(cycles(1), slow).t) > statistics.SUSPICIOUS

    def test_a_difference_in_spread_alone_is_seen(self):
        rng = np.random.default_rng(0)
        calm, wild = (20_000 + width * rng.standard_normal(_RUNS) for width in (40, 60))
        assert abs(statistics.welch(calm, wild)) < statistics.SUSPICIOUS
        assert abs(statistics.largest_t(calm, wild)) > statistics.SUSPICIOUS

    def test_constants(self):
        same, other = np.full(200, 5.0), np.full(200, 6.0)
        assert statistics.welch(same, same) == 0
        assert statistics.welch(same, other) == np.inf

    def test_a_coarse_sample_is_not_shown_to_be_equivalent(self):
        rng = np.random.default_rng(0)
        a, b = (20_000 + 4000 * rng.standard_normal(200) for _ in range(2))
        assert not statistics.difference(a, b).within(64)

    def test_random_labels_are_seldom_suspicious(self):
        found = statistics.shuffled(cycles(1), cycles(2), 20)
        assert sum(abs(t) > statistics.SUSPICIOUS for t in found) <= 1


class VerdictTest(parameterized.TestCase):
    def judge(self, measurement):
        return timing.judge("timing", {"call": timing.examine(measurement)}, _RUNS)

    def test_equal_classes_pass(self):
        assert self.judge(measure({"reversed": 0, "no keys": 0})).status is Status.PASS

    def test_a_class_that_takes_longer_fails(self):
        found = self.judge(measure({"reversed": 0, "no keys": -30}))
        assert found.status is Status.FAIL
        assert "no keys" in found.detail
        assert "reversed" not in found.detail

    def test_a_difference_far_below_the_bound_is_told_and_no_failure(self):
        found = self.judge(measure({"reversed": 0, "no keys": -7}))
        assert found.status is Status.PASS
        assert "agree within" in found.detail
        assert "1 with |t| > 4.5" in found.detail

    def test_less_power_is_no_failure_up_to_a_bound(self):
        assert self.judge(measure({"reversed": 0, "zeros": -150})).status is Status.PASS
        found = self.judge(measure({"reversed": 0, "zeros": -250}))
        assert found.status is Status.FAIL
        assert "zeros" in found.detail

    def test_a_coarse_measurement_is_unknown(self):
        def run(seed):
            rng = np.random.default_rng(seed)
            return {name: 20_000 + 4000 * rng.standard_normal(400) for name in ("random", "random again", "reversed")}

        assert self.judge(run).status is Status.UNKNOWN

    def test_what_a_second_look_does_not_see_is_chance(self):
        def run(seed):
            return measure({"reversed": 30 if seed == 0 else 0})(seed)

        assert self.judge(run).status is Status.PASS

    def test_power_alone_asks_for_no_second_look(self):
        looks = []

        def run(seed):
            looks.append(seed)
            return measure({"reversed": 0, "zeros": -150})(seed)

        assert self.judge(run).status is Status.PASS
        assert looks == [0]

    def test_a_restless_machine_is_unknown(self):
        assert self.judge(measure({"reversed": 0}, quiet=False)).status is Status.UNKNOWN

    def test_nothing_timed_is_unknown(self):
        assert timing.judge("timing", {}, _RUNS).status is Status.UNKNOWN

    def test_too_few_readings_are_an_error(self):
        with pytest.raises(RuntimeError, match="too few SMs"):
            timing.examine(lambda seed: {name: np.ones(3) for name in ("random", "random again", "zeros")})

    def test_controls(self):
        seen = {"64 cycles": statistics.difference(cycles(1), cycles(2, 64))}
        missed = {"64 cycles": statistics.difference(cycles(1), cycles(2, 1))}
        assert timing.judge_controls(seen).status is Status.PASS
        assert timing.judge_controls(missed).status is Status.FAIL


class ReadingTest(parameterized.TestCase):
    def test_the_median_over_the_sms_that_were_read(self):
        read = np.array([[10, 12, 0, 11], [0, 0, 0, 9]], np.int32)
        medians, whole = timing.of_sms(read)
        assert list(whole) == [True, False]
        assert medians[0] == 11

    def test_a_block_holds_every_array_where_it_is_said_to_lie(self):
        call = Call("bfloat16", 8, operands=True, B=2, T=3, S=5, N=2, K=1)
        arrays = call.arrays("random")
        offsets, size = _controls._layout(arrays)
        block = _controls._block(arrays, offsets, size, 64)
        assert size % 16 == 0
        assert int(block[-8:].view(np.int64)[0]) == 64
        for name, array in arrays.items():
            begin = offsets[name]
            assert begin % 256 == 0
            assert block[begin : begin + array.nbytes].tobytes() == array.tobytes()
        ends = sorted((offsets[name], offsets[name] + array.nbytes) for name, array in arrays.items())
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))

    def test_the_call_is_laid_out_as_the_library_has_it(self):
        """cuda/controls/controls.h: six sizes, two words, a float, a word, the rest, eight offsets."""
        assert _controls.ctypes.sizeof(_controls._Call) == 6 * 8 + 4 * 4 + 8 + 8 * 8
        assert _controls._Call.rest.offset == 64
        assert _controls._Call.offsets.offset == 72
