"""A secret is followed wherever it goes, through registers, predicates and memory; what is public stays public."""

import pytest
import sass
from absl.testing import parameterized

from dhp_jax.verify import Part, Policy, UnverifiableError
from dhp_jax.verify.state import State
from dhp_jax.verify.value import Step, Value

_POINTER = """
    ULDC.64 UR4, c[0x0][0x208]
    LDC.64 R2, c[0x0][0x210]
"""
_SECRET = _POINTER + "LDG.E R4, desc[UR4][R2.64]"  # R4
_WHY = "a test says so"


def _branch_is_secret(text, register="R9", policy=None):
    """Whether a branch on a register, after the code, is a leak."""
    branch = "@P6 BRA `(end)"
    code = f"{text} \n ISETP.NE.AND P6, PT, {register}, RZ, PT \n {branch}"
    return ("CT01", branch) in sass.findings(code, policy)


class FlowTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("move", "MOV R9, R4"),
        ("arithmetic", "FFMA R9, R5, R6, R4"),
        ("half_of_a_pair", "IMAD.WIDE R8, R4, 0x4, RZ"),
        ("select_by_a_secret", "ISETP.GT.AND P1, PT, R4, RZ, PT \n SEL R9, RZ, 0x1, P1"),
        ("carry", "IADD3 R5, P1, R4, 0x1, RZ \n IADD3.X R9, RZ, RZ, RZ, P1, !PT"),
        ("predicate_of_logic", "LOP3.LUT P1, RZ, R4, 0x1, RZ, 0xc0, !PT \n SEL R9, RZ, 0x1, P1"),
        ("packed_predicates", "ISETP.GT.AND P1, PT, R4, RZ, PT \n P2R R9, PR, RZ, 0x2"),
        ("unpacked_predicates", "R2P PR, R4, 0x7 \n SEL R9, RZ, 0x1, P2"),
        ("shuffle", "SHFL.BFLY PT, R9, R4, 0x1, 0x1f"),
        ("vote", "ISETP.GT.AND P1, PT, R4, RZ, PT \n VOTE.ANY R9, PT, P1"),
        ("uniform_vote", "ISETP.GT.AND P1, PT, R4, RZ, PT \n VOTEU.ANY UR9, UPT, P1 \n MOV R9, UR9"),
        ("uniform_register", "R2UR UR9, R4 \n UIADD3 UR9, UR9, 0x1, URZ \n MOV R9, UR9"),
        ("guarded_by_a_secret", "MOV R9, RZ \n ISETP.GT.AND P1, PT, R4, RZ, PT \n @P1 MOV R9, 0x1"),
        ("product", "HMMA.16816.F32 R8, R4, R12, RZ"),
        ("product_of_shared_memory", "S2UR UR8, SR_CTAID.X \n HGMMA.64x8x16.F32 R8, gdesc[UR8], RZ, !UPT"),
        ("barrier_reduction", "ISETP.GT.AND P1, PT, R4, RZ, PT \n BAR.RED.OR.DEFER_BLOCKING 0x0, P1 \n B2R.RESULT R9"),
        ("global_memory", "LDG.E.CONSTANT R9, desc[UR4][R2.64]"),
        ("shared_memory", "LDS R9, [RZ]"),
        ("local_memory", "STL [R1], R4 \n LDL R9, [R1]"),
        ("local_memory_through_a_generic_store", "ST.E desc[UR4][R2.64], R4 \n LDL R9, [R1]"),
        ("return_of_an_atomic", "ATOMG.E.ADD.STRONG.GPU PT, R9, desc[UR4][R2.64], R1"),
        ("exchange_with_a_barrier_word", "S2UR UR8, SR_CTAID.X \n SYNCS.EXCH.64 UR10, [UR8], UR4 \n MOV R9, UR10"),
        ("address", "IADD3 R6, R4, 0x8, RZ \n LDC R9, c[0x2][R6]"),
        ("constant_variable", "LDC R9, c[0x3][0x0]"),
        ("bank_chosen_at_run_time", "IADD3 R9, RZ, cx[UR4][0x0], RZ"),
        ("never_written", "MOV R9, R77"),
        ("never_written_predicate", "SEL R9, RZ, 0x1, P5"),
    )
    def test_secret_goes_on(self, code):
        # R1, R5, R6, R12 and R13 are public here.
        public = "MOV R1, RZ \n MOV R5, RZ \n MOV R6, RZ \n MOV R7, RZ \n MOV R12, RZ \n MOV R13, RZ"
        assert _branch_is_secret(f"{public} \n {_SECRET} \n {code}")

    @parameterized.named_parameters(
        ("constant", "MOV R9, 0x7"),
        ("parameter", "LDC R9, c[0x0][0x218]"),
        ("parameter_as_operand", "IADD3 R9, RZ, c[0x0][0x218], RZ"),
        ("parameter_by_index", "S2R R5, SR_TID.X \n LDC R9, c[0x0][R5+0x210]"),
        ("literal_of_the_compiler", "LDC R9, c[0x2][0x0]"),
        ("launch", "LDC R9, c[0x0][0x0]"),
        ("thread_index", "S2R R9, SR_TID.X"),
        ("zero", "CS2R R8, SRZ"),
        ("overwritten", "MOV R9, R4 \n MOV R9, 0x1"),
        ("other_register_of_a_pair", "LDG.E.64 R10, desc[UR4][R2.64] \n MOV R9, R2"),
        ("election", "ELECT P1, URZ, PT \n SEL R9, RZ, 0x1, P1"),
        ("wait", "S2UR UR8, SR_CTAID.X \n SYNCS.PHASECHK.TRANS64 P1, [UR8], R2 \n SEL R9, RZ, 0x1, P1"),
        ("local_memory_of_public_values", "STL [R1], R2 \n LDL R9, [R1]"),
        ("constant_false_guard", "MOV R9, RZ \n @!PT MOV R9, R4"),
        ("never_written_uniform", "MOV R9, UR20"),
    )
    def test_public_stays_public(self, code):
        assert not _branch_is_secret(f"MOV R1, RZ \n {_SECRET} \n {code}")

    def test_paths_are_joined(self):
        code = f"{_SECRET} \n MOV R9, RZ \n S2R R5, SR_TID.X \n ISETP.EQ.AND P0, PT, R5, RZ, PT"
        assert _branch_is_secret(f"{code} \n @P0 BRA `(over) \n MOV R9, R4 \n over:")
        assert not _branch_is_secret(f"{code} \n @P0 BRA `(over) \n MOV R8, R4 \n over:")


class GuardTest(parameterized.TestCase):
    """A register written under a public guard is secret only where the guard, or what was there, makes it so."""

    _CODE = (
        _SECRET
        + """
        LDC R7, c[0x0][0x218]
        ISETP.NE.AND P0, PT, R7, RZ, PT
        ISETP.GT.AND P1, PT, R7, 0x5, P0
        MOV R9, R4
        @P0 MOV R9, RZ
    """
    )

    def _address_is_secret(self, code):
        return any(rule == "CT02" for rule, _ in sass.findings(f"{self._CODE} \n {code}"))

    @parameterized.named_parameters(
        ("same_guard", "@P0 LDS R10, [R9]"),
        ("guard_that_implies_it", "@P1 LDS R10, [R9]"),
        ("branch_on_the_guard", "@!P0 BRA `(end) \n LDS R10, [R9]"),
        ("exit_under_the_guard", "@!P0 EXIT \n LDS R10, [R9]"),
        ("negation_made_by_a_table", "PLOP3.LUT P2, PT, P0, PT, PT, 0x8, 0x0 \n @!P2 LDS R10, [R9]"),
    )
    def test_public_where_the_guard_holds(self, code):
        assert not self._address_is_secret(code)

    @parameterized.named_parameters(
        ("no_guard", "LDS R10, [R9]"),
        ("other_guard", "@P6 LDS R10, [R9]"),
        ("negated_guard", "@!P0 LDS R10, [R9]"),
        ("guard_changed_since", "ISETP.EQ.AND P0, PT, R7, 0x3, PT \n @P0 LDS R10, [R9]"),
        ("guard_implied_by_an_older_value", "ISETP.EQ.AND P0, PT, R7, 0x3, PT \n @P1 LDS R10, [R9]"),
        ("branch_that_both_take", "@!P0 BRA `(next) \n next: \n LDS R10, [R9]"),
        ("branch_with_a_second_predicate", "@!P0 BRA P6, `(end) \n LDS R10, [R9]"),
        ("vote_of_the_warp", "@!P0 BRA.U.ANY `(end) \n LDS R10, [R9]"),
        ("other_lanes_take_part", "SHFL.BFLY PT, R10, R9, 0x1, 0x1f \n @P0 LDS R11, [R10]"),
        ("guard_overwrites_itself", "@P0 ISETP.EQ.AND P0, PT, R4, 0x3, PT \n @P0 LDS R10, [R9]"),
        ("either_of_two_predicates", "PLOP3.LUT P2, PT, P0, P6, PT, 0xa8, 0x0 \n @P2 LDS R10, [R9]"),
        (
            "second_predicate_of_a_comparison",
            "ISETP.EQ.AND P2, P3, R7, 0x3, P0 \n @P3 ISETP.EQ.AND P0, PT, R7, 0x4, PT \n @P2 LDS R10, [R9]",
        ),
    )
    def test_secret_where_it_may_not_hold(self, code):
        code = f"ISETP.LT.AND P6, PT, R7, 0x9, PT \n {code}"
        assert self._address_is_secret(code)

    def test_flag_set_to_a_constant_is_known(self):
        # How ptxas issues a copy from one thread: the first round is always taken.
        loop = """
            PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0
            loop:
            @P0 ELECT P2, URZ, PT
            @P2 PLOP3.LUT P0, PT, PT, PT, PT, 0x8, 0x0
            PLOP3.LUT P2, PT, PT, PT, PT, 0x8, 0x0
            @P0 BRA.U.ANY `(loop)
        """
        assert sass.findings(loop) == []
        constant = "PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0"
        assert sass.findings(loop.replace(constant, "ISETP.NE.AND P0, PT, RZ, c[0x0][0x210], PT")) != []

    def test_register_of_the_warp_is_written_for_all_lanes(self):
        code = f"{_SECRET} \n S2R R5, SR_TID.X \n ISETP.EQ.AND P0, PT, R5, RZ, PT \n UMOV UR8, URZ"
        use = "MOV R9, UR8"
        assert _branch_is_secret(f"{code} \n @P0 R2UR UR8, R4 \n {use}")
        assert _branch_is_secret(f"{code} \n @P0 R2UR UR8, R4 \n @!P0 MOV R9, RZ \n @!P0 {use}")

    def test_register_of_the_warp_is_written_by_lanes_that_came_another_way(self):
        code = f"""
            {_SECRET}
            S2R R5, SR_TID.X
            ISETP.EQ.AND P3, PT, R5, RZ, PT
            UMOV UR8, URZ
            PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0
            @P3 BRA `(together)
            PLOP3.LUT P0, PT, PT, PT, PT, 0x8, 0x0
            together:
            @P0 R2UR UR8, R4
            @!P0 LDS R10, [UR8]
        """
        assert ("CT02", "@!P0 LDS R10, [UR8]") in sass.findings(code)

    def test_vote_says_that_a_lane_wrote_the_register(self):
        code = """
            S2R R5, SR_TID.X
            ISETP.NE.AND P0, PT, R5, RZ, PT
            R2UR UR6, R99
            @!P0 R2UR UR6, R5
            UMOV UR8, URZ
            UMOV UR9, URZ
            VOTEU.ALL UP0, P0
            @!UP0 SYNCS.EXCH.64 URZ, [UR6], UR8
        """
        assert sass.findings(code) == []
        assert sass.findings(code.replace("@!UP0 SYNCS", "@UP0 SYNCS")) != []
        assert (
            sass.findings(code.replace("VOTEU.ALL UP0, P0", "VOTEU.ALL UP0, P0 \n ISETP.NE.AND P0, PT, R5, 0x1, PT"))
            != []
        )


class LaneTest(parameterized.TestCase):
    """Paths on which a flag has different constants are told apart, but lanes from both may exchange data."""

    _TWO_WAYS = (
        _SECRET
        + """
        S2R R5, SR_TID.X
        ISETP.EQ.AND P3, PT, R5, RZ, PT
        MOV R8, RZ
        PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0
        @P3 BRA `(together)
        MOV R8, R4
        PLOP3.LUT P0, PT, PT, PT, PT, 0x8, 0x0
        together:
    """
    )

    def _is_leak(self, code):
        return any(rule == "CT02" for rule, _ in sass.findings(f"{self._TWO_WAYS} \n {code}"))

    def test_own_register_is_public_on_its_way(self):
        assert not self._is_leak("@P0 LDS R10, [R8]")

    @parameterized.named_parameters(
        ("shuffle", "SHFL.BFLY PT, R9, R8, 0x1, 0x1f"),
        ("register_of_the_warp", "R2UR UR9, R8 \n MOV R9, UR9"),
        ("vote", "ISETP.NE.AND P1, PT, R8, RZ, PT \n VOTE.ANY R9, PT, P1"),
        ("product", "MOV R12, RZ \n MOV R13, RZ \n MOV R14, RZ \n MOV R15, RZ \n HMMA.1688.F32.TF32 R8, R12, R8, RZ"),
        ("barrier", "ISETP.NE.AND P1, PT, R8, RZ, PT \n BAR.RED.OR.DEFER_BLOCKING 0x0, P1 \n B2R.RESULT R9"),
    )
    def test_data_of_other_lanes_is_secret(self, code):
        assert self._is_leak(f"MOV R9, RZ \n {code} \n @P0 LDS R10, [R9]")


class MemoryTest(parameterized.TestCase):
    """Global memory is public where the policy says so, through pointers that are only added to."""

    _PUBLIC = Policy(public_buffers=(Part(parameter=0, reason=_WHY),))

    def _is_secret(self, code, policy=None):
        load = "LDG.E R9, desc[UR4][R2.64]"
        return _branch_is_secret(f"{_POINTER} \n {code} \n {load}", policy=policy or self._PUBLIC)

    @parameterized.named_parameters(
        ("pointer", ""),
        ("offset", "IADD3 R2, P0, R2, 0x40, RZ \n IADD3.X R3, RZ, R3, RZ, P0, !PT"),
        ("index", "S2R R5, SR_TID.X \n IMAD.WIDE R2, R5, 0x4, R2"),
        ("scaled_index", "S2R R5, SR_TID.X \n LEA R2, P0, R5, R2, 0x2 \n LEA.HI.X R3, R5, R3, RZ, 0x2, P0"),
        ("parameter_as_operand", "S2R R5, SR_TID.X \n IMAD.WIDE R2, R5, 0x4, c[0x0][0x210]"),
        ("uniform", "ULDC.64 UR6, c[0x0][0x210] \n MOV R2, UR6 \n IMAD.U32 R3, RZ, RZ, UR7"),
        ("loop", "loop: \n IADD3 R2, P0, R2, 0x4, RZ \n IADD3.X R3, RZ, R3, RZ, P0, !PT \n @P0 BRA `(loop)"),
        ("itself_again", "S2R R5, SR_TID.X \n ISETP.EQ.AND P0, PT, R5, RZ, PT \n SEL R2, R2, R2, P0"),
    )
    def test_public_buffer(self, code):
        assert not self._is_secret(code)

    @parameterized.named_parameters(
        ("other_pointer", "LDC.64 R2, c[0x0][0x218]"),
        ("half_of_another", "LDC R3, c[0x0][0x21c]"),
        ("difference", "LDC R6, c[0x0][0x218] \n IADD3 R2, R6, -R2, RZ"),
        ("multiple", "IMAD R2, R2, 0x2, RZ"),
        ("shifted", "LEA R2, R2, RZ, 0x1"),
        ("masked", "LOP3.LUT R2, R2, 0xff, RZ, 0xc0, !PT"),
        ("sum_of_two", "IADD3 R2, R2, R2, RZ"),
        (
            "either_of_two",
            "LDC R6, c[0x0][0x218] \n S2R R5, SR_TID.X \n ISETP.EQ.AND P0, PT, R5, RZ, PT \n SEL R2, R2, R6, P0",
        ),
        (
            "either_on_two_paths",
            "S2R R5, SR_TID.X \n ISETP.EQ.AND P0, PT, R5, RZ, PT \n"
            "@P0 BRA `(over) \n LDC.64 R2, c[0x0][0x218] \n over:",
        ),
        ("pointer_that_was_read", "LDG.E.64 R2, desc[UR4][R2.64]"),
        ("carry_of_the_sum", "IADD3 R2, P0, R2, R3, RZ \n IADD3.X R3, RZ, RZ, RZ, P0, !PT"),
        ("secret_stored_there", "LDS R8, [RZ] \n STG.E desc[UR4][R2.64], R8"),
        ("secret_copied_there", "R2UR UR6, R2 \n R2UR UR7, R3 \n UMOV UR8, URZ \n UBLKCP.G.S [UR6], [UR8], UR8"),
        (
            "secret_stored_who_knows_where",
            "LDS R8, [RZ] \n IADD3 R6, -R2, R3, RZ \n MOV R7, RZ \n STG.E desc[UR4][R6.64], R8",
        ),
    )
    def test_anything_else_is_secret(self, code):
        assert self._is_secret(code)

    def test_without_a_policy_all_memory_is_secret(self):
        assert self._is_secret("", Policy())

    def test_store_after_the_load_counts_too(self):
        code = f"""
            {_POINTER}
            LDS R8, [RZ]
            loop:
            LDG.E R9, desc[UR4][R2.64]
            STG.E desc[UR4][R2.64], R8
            S2R R5, SR_TID.X
            ISETP.EQ.AND P0, PT, R5, RZ, PT
            @P0 BRA `(loop)
        """
        assert _branch_is_secret(code, policy=self._PUBLIC)

    def test_secret_scalar(self):
        policy = Policy(secrets=(Part(parameter=1, offset=4, size=4, reason=_WHY),))
        assert _branch_is_secret("LDC R9, c[0x0][0x21c]", policy=policy)
        assert _branch_is_secret("LDC.64 R8, c[0x0][0x218]", policy=policy)
        assert _branch_is_secret("IADD3 R9, RZ, c[0x0][0x21c], RZ", policy=policy)
        assert _branch_is_secret("S2R R5, SR_TID.X \n LDC R9, c[0x0][R5+0x210]", policy=policy)
        assert _branch_is_secret(
            "ULDC.64 UR6, c[0x0][0x198] \n MOV R2, UR6 \n MOV R3, UR7 \n LD.E R9, [R2]", policy=policy
        )
        assert not _branch_is_secret("LDC R9, c[0x0][0x218]", policy=policy)

    def test_parameters_by_their_generic_address_are_public(self):
        code = "ULDC.64 UR6, c[0x0][0x198] \n MOV R2, UR6 \n MOV R3, UR7 \n LD.E R9, [R2]"
        assert not _branch_is_secret(code)
        assert _branch_is_secret(code.replace("0x198", "0x1a0"))

    def test_constant_variables_are_public_where_the_policy_says_so(self):
        code = "LDC R9, c[0x3][0x0]"
        assert _branch_is_secret(code)
        assert not _branch_is_secret(code, policy=Policy(public_constants=_WHY))

    def test_unknown_bank_is_unknown(self):
        (problem,) = sass.problems("LDC R9, c[0x7][0x0]")
        assert "constant bank 7 in 'LDC R9, c[0x7][0x0]' is unknown" in problem

    def test_unknown_special_register_is_unknown(self):
        (problem,) = sass.problems("S2R R9, SR_FROB")
        assert "unknown special register SR_FROB" in problem


class PathTest(parameterized.TestCase):
    """A finding tells the whole way from the source of the secret."""

    def _path(self, text):
        (finding,) = (finding for finding in sass.report(text).findings if finding.rule == "CT01")
        return [(step.instruction.split()[0], step.place, step.reason) for step in finding.path]

    def test_through_registers(self):
        text = f"{_SECRET} \n IADD3 R5, R4, 0x1, RZ \n ISETP.NE.AND P0, PT, R5, RZ, PT \n @P0 BRA `(end)"
        assert self._path(text) == [
            ("LDG.E", "R4", "memory"),
            ("IADD3", "R5", "computed"),
            ("ISETP.NE.AND", "P0", "computed"),
        ]

    def test_through_shared_memory(self):
        text = f"{_SECRET} \n STS [RZ], R4 \n LDS R5, [RZ] \n ISETP.NE.AND P0, PT, R5, RZ, PT \n @P0 BRA `(end)"
        assert [(place, reason) for _, place, reason in self._path(text)] == [
            ("R4", "memory"),
            ("shared memory", "stored"),
            ("R5", "shared memory"),
            ("P0", "computed"),
        ]

    def test_through_a_guard(self):
        text = f"""
            {_SECRET}
            MOV R5, RZ
            ISETP.NE.AND P1, PT, R4, RZ, PT
            @P1 MOV R5, 0x1
            ISETP.NE.AND P0, PT, R5, RZ, PT
            @P0 BRA `(end)
        """
        assert ("@P1", "R5", "written or not") in self._path(text)

    def test_lines(self):
        (finding,) = sass.report(f"{_SECRET} \n ISETP.NE.AND P0, PT, R4, RZ, PT \n @P0 EXIT").findings
        assert [str(step.line) for step in finding.path] == ["kernel.cu:3", "kernel.cu:4"]
        assert str(finding.lines[0]) == "kernel.cu:5"


class SharedStateTest(parameterized.TestCase):
    @parameterized.parameters((None,), (("P0", True),), (("P0", False),))
    def test_secret_of_the_warp_is_there_whichever_way_a_lane_came(self, guard):
        own, other = State(), State()
        other.write("UR5", Value(Step(None, "memory", "loaded")), guard)
        assert own.share(other)
        assert own.read("UR5").secret is not None
        assert not own.share(other)


class RefusalTest(parameterized.TestCase):
    def test_policy_for_other_parameters_is_unknown(self):
        (problem,) = sass.problems("NOP", Policy(parameter_bytes=(408,)))
        assert "the parameters take 32 bytes; the policy was written for [408]" in problem

    def test_policy_for_a_parameter_that_is_not_there(self):
        with pytest.raises(UnverifiableError, match="the policy names all bytes at 0 of parameter 9"):
            Policy(secrets=(Part(parameter=9, reason=_WHY),)).check(sass.kernel("NOP").parameters)
