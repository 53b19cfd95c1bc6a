"""Clearance is given only where every mandatory check ran and passed."""

from absl.testing import parameterized

from dhp_jax.validate import plan, verdict
from dhp_jax.validate.outcome import Check, Status, control
from dhp_jax.validate.verdict import Exit

_NEEDED = ("proof", "counters")


def passing(*names):
    return [Check(name, Status.PASS, "") for name in names]


class VerdictTest(parameterized.TestCase):
    def test_all_passed_is_cleared(self):
        ended = verdict.judge(passing("proof", "counters", "speed"), _NEEDED)
        assert (ended.status, ended.missing) == (Exit.CLEARED, ())
        assert ended.line.startswith("CLEARED")

    @parameterized.parameters(Status.SKIPPED, Status.UNKNOWN)
    def test_a_mandatory_check_without_an_answer_withholds_it(self, status):
        ended = verdict.judge([*passing("proof"), Check("counters", status, "no permission")], _NEEDED)
        assert ended.status == Exit.INCOMPLETE == 3
        assert ended.missing == (f"counters: {status.value}. no permission",)
        assert not ended.line.startswith("CLEARED")

    def test_a_mandatory_check_that_did_not_run_withholds_it(self):
        ended = verdict.judge(passing("proof"), _NEEDED)
        assert ended.status is Exit.INCOMPLETE
        assert ended.missing == ("counters: it did not run.",)

    @parameterized.parameters("counters", "speed")
    def test_any_failure_is_status_1(self, name):
        ended = verdict.judge([*passing("proof", "counters"), Check(name, Status.FAIL, "differs")], _NEEDED)
        assert ended.status == Exit.FAILED == 1
        assert ended.line == f"NOT CLEARED: {name} failed"

    def test_a_check_must_pass_each_time(self):
        ended = verdict.judge([*passing("proof", "counters"), Check("proof", Status.UNKNOWN, "")], _NEEDED)
        assert ended.status is Exit.INCOMPLETE

    def test_other_checks_may_be_skipped(self):
        assert verdict.judge([*passing(*_NEEDED), Check("speed", Status.SKIPPED, "")], _NEEDED).status is Exit.CLEARED

    def test_a_missed_control_voids_the_run(self):
        ended = verdict.judge([*passing(*_NEEDED), control("proof control", False, "not seen")], _NEEDED)
        assert ended.status is Exit.FAILED
        assert ended.line.startswith("VOID")

    def test_a_quick_run_clears_nothing(self):
        ended = verdict.judge(passing(*_NEEDED), _NEEDED, quick=True)
        assert ended.status is Exit.INCOMPLETE
        assert "quick" in ended.missing[0]

    def test_nothing_mandatory_is_no_clearance(self):
        assert verdict.judge(passing("speed"), ()).status is Exit.INCOMPLETE


class SelfTestTest(parameterized.TestCase):
    @parameterized.parameters(
        (Status.PASS, Exit.CLEARED), (Status.FAIL, Exit.FAILED), (Status.SKIPPED, Exit.INCOMPLETE)
    )
    def test_status(self, status, expected):
        checks = [control("a", True, ""), Check("b", status, "", is_control=True)]
        assert verdict.judge_self_test(checks).status is expected

    def test_nothing_is_no_pass(self):
        assert verdict.judge_self_test([]).status is Exit.INCOMPLETE


class PlanTest(parameterized.TestCase):
    def test_every_part_exists_and_has_a_name_of_its_own(self):
        assert all(callable(part.function()) for part in plan.PARTS)
        assert len({part.name for part in plan.PARTS}) == len(plan.PARTS)
        assert len(set(plan.mandatory())) == len(plan.mandatory())

    @parameterized.parameters("gate 1", "gate 2", "gate 3", "timing")
    def test_every_gate_is_mandatory_and_has_a_control(self, gate):
        assert any(name.startswith(gate) and "control" not in name for name in plan.mandatory())
        assert f"{gate} control" in plan.mandatory()
        assert f"{gate} control" in [part.name for part in plan.chosen(self_test=True)]

    def test_a_choice(self):
        assert {part.loop for part in plan.chosen(3)} == {3}
        assert all(part.is_control for part in plan.chosen(self_test=True))
        assert {part.name for part in plan.chosen()} - {part.name for part in plan.chosen(quick=True)} >= {"sanitizers"}
