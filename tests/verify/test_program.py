"""The control-flow graph has every edge: calls, returns, jump tables, barriers. What it lacks is said."""

import pytest
import sass
import zoo
from absl.testing import parameterized

from dhp_jax.verify import UnverifiableError, Verdict, verify_image
from dhp_jax.verify.program import Program

_SECRET_BRANCH = "@P0 BRA `(end)"  # P0 is secret where R4 was loaded and compared
_LOAD = "LDG.E R4, desc[UR4][R2.64]"
_UNFOLLOWABLE = {"calls", "indirect"}  # kernels of control.cu with recursion, and with a pointer to a function
_COMPARE = "ISETP.NE.AND P0, PT, R4, RZ, PT"
_POINTER = """
    ULDC.64 UR4, c[0x0][0x208]
    LDC.64 R2, c[0x0][0x210]
"""


def _reached(text):
    """Whether the load before `mark` taints the branch after it: whether there is a path between."""
    return ("CT01", _SECRET_BRANCH) in sass.findings(text)


class EdgeTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("fall_through", "NOP"),
        ("jump", "BRA `(next)\n next:"),
        ("guarded_branch_that_is_not_taken", "@P6 BRA `(elsewhere)"),
        ("branch_with_an_operand_that_fails", "BRA P6, `(elsewhere)"),
        ("branch_on_the_whole_warp", "BRA.U.ANY `(elsewhere)"),
        ("guarded_exit", "@P6 EXIT"),
        ("convergence", "BSSY B0, `(next)\n BSYNC B0\n next:"),
        ("constant_false_jump", "@!PT BRA `(elsewhere)"),
        ("call_and_return", "MOV R20, 0x80\n CALL.REL.NOINC `(function)\n elsewhere2:"),
    )
    def test_path_goes_on(self, way):
        # P6 is public; what stands elsewhere only returns.
        text = f"""
            {_POINTER}
            ISETP.NE.AND P6, PT, R2, RZ, PT
            {_LOAD}
            NOP
            NOP
            {way}
            {_COMPARE}
            {_SECRET_BRANCH}
            BRA `(end)
            elsewhere:
            function:
            RET.REL.NODEC R20 `(kernel)
        """
        text = text if "CALL" in way else text.replace("RET.REL.NODEC R20 `(kernel)", "EXIT")
        assert _reached(text)

    def test_exit_ends_a_path(self):
        assert not _reached(
            f"{_POINTER} \n MOV R4, RZ \n BRA `(over) \n {_LOAD} \n EXIT \n over: \n {_COMPARE} \n {_SECRET_BRANCH}"
        )

    def test_return_goes_to_every_caller(self):
        text = f"""
            {_POINTER}
            MOV R4, RZ
            MOV R20, 0x50
            CALL.REL.NOINC `(function)
            MOV R20, 0x70
            CALL.REL.NOINC `(function)
            {_COMPARE}
            {_SECRET_BRANCH}
            BRA `(end)
            function:
            {_LOAD}
            RET.REL.NODEC R20 `(kernel)
        """
        assert _reached(text)

    def test_jump_table_leads_to_all_its_targets(self):
        text = f"""
            {_POINTER}
            {_LOAD}
            LDC R6, c[0x0][0x218]
            LDC R6, c[0x2][R6]
            MOV R7, RZ
            BRX R6 -0x130 (*"BRANCH_TARGETS one,two"*)
            one:
            EXIT
            two:
            {_COMPARE}
            {_SECRET_BRANCH}
        """
        assert _reached(text)

    def test_barrier_leads_where_it_was_set(self):
        text = f"""
            {_POINTER}
            {_LOAD}
            BSSY B3, `(there)
            BMOV.32.CLEAR R9, B3
            BMOV.32 B4, R9
            BSYNC B4
            MOV R4, RZ
            there:
            {_COMPARE}
            {_SECRET_BRANCH}
        """
        assert _reached(text)

    def test_loop(self):
        text = f"""
            {_POINTER}
            MOV R4, RZ
            LDC R8, c[0x0][0x218]
            loop:
            {_COMPARE}
            {_SECRET_BRANCH}
            {_LOAD}
            IADD3 R8, R8, -0x1, RZ
            ISETP.NE.AND P1, PT, R8, RZ, PT
            @P1 BRA `(loop)
        """
        assert _reached(text)


class MissingEdgeTest(parameterized.TestCase):
    """What the graph does not know makes the kernel UNKNOWN."""

    @parameterized.named_parameters(
        (
            "call_through_a_pointer",
            "LDC.64 R2, c[0x4][0x0] \n CALL.REL.NOINC R2 `(kernel)",
            "nothing tells where 'CALL",
        ),
        (
            "return_to_an_unknown_place",
            "LDC R20, c[0x0][0x210] \n MOV R21, RZ \n RET.REL.NODEC R20 `(kernel)",
            "nothing tells where 'RET",
        ),
        (
            "return_into_the_middle_of_a_block",
            "MOV R20, 0x10 \n MOV R21, RZ \n NOP \n RET.REL.NODEC R20 `(kernel)",
            "nothing tells where 'RET",
        ),
        (
            "return_counted_from_elsewhere",
            "MOV R20, 0x40 \n MOV R21, RZ \n other: \n RET.REL.NODEC R20 `(other)",
            "nothing tells where 'RET",
        ),
        ("jump_table_without_targets", "LDC.64 R6, c[0x2][0x0] \n BRX R6 -0x10", "nothing tells where 'BRX"),
        ("barrier_that_was_never_set", "BSYNC B0", "nothing tells where 'BSYNC"),
        ("label_of_another_section", "BRA `(somewhere_else)", "leads out of the kernel's section"),
        ("code_that_no_path_reaches", "BRA `(end) \n MOV R1, R2", "no path leads to 'MOV R1, R2'"),
    )
    def test_is_unknown(self, text, problem):
        report = sass.report(text)
        assert report.verdict is Verdict.UNKNOWN
        assert [said.problem for said in report.problems if problem in said.problem]
        assert all(said.remedy for said in report.problems)

    def test_code_that_runs_over_its_end(self):
        with pytest.raises(UnverifiableError, match=r"no instruction at 0x1000.*outside its section"):
            Program(sass.kernel("NOP")).block(0x1000)

    def test_unreached_padding_is_no_problem(self):
        assert sass.problems("BRA `(over) \n NOP \n NOP \n over:") == []

    def test_secret_unknown_target_is_a_leak_all_the_same(self):
        report = sass.report(f"{_POINTER} \n {_LOAD} \n MOV R5, RZ \n CALL.REL.NOINC R4 `(kernel)")
        assert report.verdict is Verdict.LEAK
        assert [finding.rule for finding in report.findings] == ["CT01"]
        assert report.problems


class LatencyTest(parameterized.TestCase):
    """An instruction that the table calls fixed-latency must need no scoreboard."""

    def test_scoreboard_of_arithmetic_is_unknown(self):
        (problem,) = sass.problems("IADD3 R1, R2, R3, RZ", scoreboards=(0,))
        assert "IADD3 R1, R2, R3, RZ' signals a scoreboard: no fixed latency" in problem

    def test_scoreboard_of_a_load_is_expected(self):
        assert sass.problems("LDS R1, [RZ]", scoreboards=(0,)) == []


class CompiledTest(parameterized.TestCase):
    """Compiled code with calls, loops, switches and divergence is followed to its end."""

    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_probe(self, architecture):
        path = zoo.cubin(zoo.ROOT / "tests" / "verify" / "probes" / "control.cu", architecture)
        reports = verify_image(path)
        assert {report.kernel.partition("(")[0] for report in reports if report.problems} == _UNFOLLOWABLE

    def test_slow_paths_of_arithmetic_are_followed(self):
        path = zoo.cubin(zoo.ROOT / "tests" / "verify" / "probes" / "arithmetic.cu", "sm_90a")
        reports = {report.kernel.partition("(")[0]: report for report in verify_image(path)}
        assert not any(report.problems for report in reports.values())
        assert sum(branch.sort == "secret" for branch in reports["floats"].branches) > 10
