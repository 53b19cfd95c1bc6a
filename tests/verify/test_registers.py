"""What an instruction reads and writes, and what for, is known whole; nvdisasm's account of it must agree."""

import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import UnverifiableError, cubin, liveness, registers
from dhp_jax.verify import instruction as parser
from dhp_jax.verify.layout import Role
from dhp_jax.verify.liveness import Life

PROBES = zoo.ROOT / "tests" / "verify" / "probes"


def _kernels(path):
    return cubin.kernels(path.read_bytes())


def _span(prefix, first, count):
    return {f"{prefix}{first + i}" for i in range(count)}


def _effect(text):
    return registers.effect(parser.parse(0, text))


def _reads(text, role=None):
    return {read.register for read in _effect(text).reads if role in (None, read.role)}


class EffectTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("sum", "IADD3 R4, R5, -R6, RZ", {"R5", "R6"}, {"R4"}),
        ("carry_out", "IADD3 R4, P0, R5, R6, RZ", {"R5", "R6"}, {"R4", "P0"}),
        ("carry_in", "IADD3.X R4, P1, R5, R6, RZ, P0, !PT", {"R5", "R6", "P0"}, {"R4", "P1"}),
        ("uniform_pair", "UIADD3.64 UR4, UR6, 0x2, URZ", {"UR6", "UR7"}, {"UR4", "UR5"}),
        ("wide", "IMAD.WIDE R4, R6, 0x4, R8", {"R6", "R8", "R9"}, {"R4", "R5"}),
        ("high", "IMAD.HI.U32 R4, R6, R7, R8", {"R6", "R7", "R8", "R9"}, {"R4"}),
        ("predicate_first", "LOP3.LUT P0, RZ, R1, 0x4, RZ, 0xc0, !PT", {"R1"}, {"P0"}),
        ("two_predicates", "ISETP.GE.AND P0, P1, R2, R3, P4", {"R2", "R3", "P4"}, {"P0", "P1"}),
        ("predicates_from_predicates", "PLOP3.LUT P0, PT, P1, P2, UP3, 0x80, 0x0", {"P1", "P2", "UP3"}, {"P0"}),
        ("predicates_to_register", "P2R R5, PR, R6, 0x5", {"P0", "P2", "R6"}, {"R5"}),
        ("register_to_predicates", "R2P PR, R0.B1, 0x6", {"R0"}, {"P1", "P2"}),
        ("vote", "VOTE.ANY R5, PT, P0", {"P0"}, {"R5"}),
        ("shuffle", "SHFL.IDX PT, R5, R4, R3, 0x1f", {"R3", "R4"}, {"R5"}),
        ("double", "DFMA R4, R6, R8, R10", _span("R", 6, 6), {"R4", "R5"}),
        ("to_double", "F2F.F64.F32 R4, R6", {"R6"}, {"R4", "R5"}),
        ("from_double", "F2F.F32.F64 R4, R6", {"R6", "R7"}, {"R4"}),
        ("long_to_float", "I2F.S64 R4, R6", {"R6", "R7"}, {"R4"}),
        ("double_to_long", "F2I.S64.F64.TRUNC R4, R6", {"R6", "R7"}, {"R4", "R5"}),
        ("special_pair", "CS2R R4, SRZ", set(), {"R4", "R5"}),
        ("load", "LDG.E.128 R4, desc[UR4][R2.64+0x8]", {"UR4", "UR5", "R2", "R3"}, _span("R", 4, 4)),
        ("load_64_bit_address", "LD.E R5, [R4]", {"R4", "R5"}, {"R5"}),
        ("shared_load", "LDS.64 R4, [R6+UR8]", {"R6", "UR8"}, {"R4", "R5"}),
        ("store", "STG.E.64 desc[UR4][R2.64], R6", {"UR4", "UR5", "R2", "R3", "R6", "R7"}, set()),
        ("compare_and_swap", "ATOMG.E.CAS.64 PT, R4, [R8], R10, R12", _span("R", 8, 6), {"R4", "R5"}),
        ("constant", "LDC.64 R2, c[0x2][R6+0x10]", {"R6"}, {"R2", "R3"}),
        ("bank_in_registers", "IADD3 R2, R3, cx[UR4][0x10], RZ", {"R3", "UR4", "UR5"}, {"R2"}),
        ("matrices", "LDSM.16.M88.4 R12, [R0+UR4]", {"R0", "UR4"}, _span("R", 12, 4)),
        ("matrices_stored", "STSM.16.M88.2 [R12], R20", {"R12", "R20", "R21"}, set()),
        (
            "product",
            "HMMA.16816.F32 R12, R8, R2, R16",
            _span("R", 8, 4) | {"R2", "R3"} | _span("R", 16, 4),
            _span("R", 12, 4),
        ),
        (
            "half_product",
            "HMMA.16816.F16 R12, R8, R2, R16",
            _span("R", 8, 4) | {"R2", "R3", "R16", "R17"},
            {"R12", "R13"},
        ),
        (
            "group_product",
            "HGMMA.64x64x16.F32 R24, gdesc[UR8], R24, UP0, gsb0",
            _span("R", 24, 32) | _span("UR", 8, 4) | {"UP0"},
            _span("R", 24, 32),
        ),
        (
            "group_product_of_registers",
            "HGMMA.64x8x16.F16 R24, R4, gdesc[UR8], RZ, !UPT",
            _span("R", 4, 4) | _span("UR", 8, 4),
            {"R24", "R25"},
        ),
        (
            "tensor_load",
            "UTMALDG.4D.MULTICAST [UR8], [UR4], UR3, desc[UR14]",
            _span("UR", 8, 6) | {"UR4", "UR5", "UR3", "UR14", "UR15"},
            set(),
        ),
        ("tensor_store", "UTMASTG.2D [UR8], [UR4]", _span("UR", 8, 3) | {"UR4", "UR5"}, set()),
        ("bulk_load", "UBLKCP.S.G [UR8], [UR4], UR6", {"UR8", "UR9", "UR4", "UR5", "UR6"}, set()),
        ("bulk_store", "UBLKCP.G.S [UR8], [UR4], UR6", {"UR8", "UR9", "UR4", "UR6"}, set()),
        ("arrival", "SYNCS.ARRIVE.TRANS64 R2, [UR6], R0", {"UR6", "R0"}, {"R2", "R3"}),
        ("phase", "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R4+UR7], R3", {"R4", "UR7", "R3"}, {"P0"}),
        ("remote_store", "STAS.128 [R12.64], R8", {"R12", "R13"} | _span("R", 8, 4), set()),
        ("return", "RET.REL.NODEC R20 `(kernel)", {"R20", "R21"}, set()),
        ("zero_registers", "IADD3 RZ, PT, RZ, URZ, RZ", set(), set()),
    )
    def test_registers(self, text, reads, writes):
        assert _reads(text) == reads
        assert set(_effect(text).writes) == writes

    def test_guard_is_read(self):
        assert _reads("@!P3 MOV R1, R2", Role.GATE) == {"P3"}

    def test_constant_false_guard_leaves_nothing(self):
        assert _effect("@!PT LDS R4, [R5]") == registers.Effect((), ())

    @parameterized.named_parameters(
        ("address", "LDG.E R4, desc[UR4][R2.64]", Role.ADDRESS, {"UR4", "UR5", "R2", "R3"}),
        ("index_of_a_constant", "LDC R4, c[0x3][R5]", Role.ADDRESS, {"R5"}),
        ("index_in_arithmetic", "FADD R4, R5, cx[UR4][0x8]", Role.ADDRESS, {"UR4", "UR5"}),
        ("matrix", "HGMMA.64x8x16.F32 R24, gdesc[UR8], RZ, !UPT", Role.ADDRESS, _span("UR", 8, 4)),
        ("matrix_beside_registers", "HGMMA.64x8x16.F32 R24, R4, gdesc[UR8], RZ, !UPT", Role.ADDRESS, {"UR10", "UR11"}),
        ("size_of_a_copy", "UBLKCP.S.G [UR8], [UR4], UR6", Role.ADDRESS, {"UR8", "UR9", "UR4", "UR5", "UR6"}),
        ("lane", "SHFL.IDX PT, R5, R4, R3, R2", Role.LANE, {"R3", "R2"}),
        ("accumulate", "HGMMA.64x8x16.F32 R24, gdesc[UR8], R24, UP0", Role.GATE, {"UP0"}),
        ("fill", "LDGSTS.E.128.ZFILL [R4], desc[UR4][R2.64], P1", Role.GATE, {"P1"}),
        ("second_predicate", "@P0 BRA P1, `(L)", Role.FLOW, {"P1"}),
        ("target", "BRX R6 -0x130", Role.FLOW, {"R6", "R7"}),
        ("sleep", "NANOSLEEP R4", Role.FLOW, {"R4"}),
        ("mask", "WARPSYNC R4", Role.FLOW, {"R4"}),
        ("barrier", "BAR.SYNC.DEFER_BLOCKING R4, R5", Role.MEETING, {"R4", "R5"}),
        ("parity", "SYNCS.PHASECHK.TRANS64 P0, [UR4], R2", Role.MEETING, {"R2"}),
        ("count", "SYNCS.EXCH.64 URZ, [UR6], UR4", Role.MEETING, {"UR4", "UR5"}),
    )
    def test_role(self, text, role, expected):
        assert _reads(text, role) == expected


class AgreementTest(parameterized.TestCase):
    """nvdisasm's own account of reads and writes says the same, on every instruction of what we compile."""

    @parameterized.product(name=["arithmetic", "control", "memory"], architecture=zoo.ARCHITECTURES)
    def test_on_probes(self, name, architecture):
        self._assert_agreement(_kernels(zoo.cubin(PROBES / f"{name}.cu", architecture)))

    @parameterized.parameters("pipeline", "cluster", "copies", "forms")
    def test_on_hopper_probes(self, name):
        self._assert_agreement(_kernels(zoo.cubin(PROBES / f"{name}.cu", "sm_90a")))

    @parameterized.parameters(*zoo.ARCHITECTURES)
    def test_on_what_ships(self, architecture):
        self._assert_agreement(zoo.shipped_kernels(architecture))

    def _assert_agreement(self, kernels):
        assert [kernel.listing.problem for kernel in kernels] == [None] * len(kernels)
        checked = [listed for kernel in kernels for listed in kernel.listing.code if listed.life is not None]
        assert len(checked) > 30


class DisagreementTest(parameterized.TestCase):
    """The check of the two accounts reports each way in which they can differ, and knows its exceptions."""

    def _check(self, text, reads, writes):
        return liveness.check(parser.parse(0, text), Life(text, frozenset(reads), frozenset(writes)))

    @parameterized.named_parameters(
        ("read_unknown_to_us", "IADD3 R1, R2, R3, RZ", {"R2", "R3", "R4"}, {"R1"}),
        ("read_unknown_to_it", "IADD3 R1, R2, R3, RZ", {"R2"}, {"R1"}),
        ("write_unknown_to_us", "IADD3 R1, R2, R3, RZ", {"R2", "R3"}, {"R1", "P0"}),
        ("write_unknown_to_it", "IADD3 R1, R2, R3, RZ", {"R2", "R3"}, set()),
        ("descriptor_at_an_odd_place", "LDG.E R4, [R2.64]", {"R2", "R3", "UR5", "UR6"}, {"R4"}),
        ("half_a_descriptor", "LDG.E R4, [R2.64]", {"R2", "R3", "UR4"}, {"R4"}),
        ("descriptor_of_shared_memory", "LDS R4, [R2]", {"R2", "UR4", "UR5"}, {"R4"}),
        ("predicate_unknown_to_r2p", "R2P PR, R0, 0x3", {"R0"}, {"P4"}),
        ("argument_of_a_call_through_a_register", "CALL.REL.NOINC R2 `(kernel)", {"R0"}, {"R5"}),
    )
    def test_is_reported(self, text, reads, writes):
        with pytest.raises(UnverifiableError, match=r"the table says reads .* nvdisasm says reads .*One of the two"):
            self._check(text, reads, writes)

    def test_another_text_is_reported(self):
        with pytest.raises(UnverifiableError, match="life ranges of nvdisasm cannot be read"):
            liveness.check(parser.parse(0, "MOV R1, R2"), Life("MOV R1, R3", frozenset({"R2"}), frozenset({"R1"})))

    def test_hidden_descriptor_is_taken_over(self):
        checked = self._check("LDG.E R4, [R2.64]", {"R2", "R3", "UR4", "UR5"}, {"R4"})
        assert checked.hidden == ("UR4", "UR5")
        reads = {read.register: read.role for read in registers.effect(checked).reads}
        assert reads["UR4"] is reads["UR5"] is Role.ADDRESS

    @parameterized.named_parameters(
        ("predicates_that_r2p_writes", "R2P PR, R0, 0x3", {"R0"}, set()),
        ("predicates_that_p2r_reads", "P2R R1, PR, RZ, 0x3", set(), {"R1"}),
        (
            "fill_predicate_of_a_copy",
            "LDGSTS.E.128.ZFILL [R4], desc[UR4][R2.64], P1",
            {"R4", "R2", "R3", "UR4", "UR5", "P1"},
            {"P1"},
        ),
        ("calling_convention", "CALL.REL.NOINC `(f)", {"R0", "R1"}, {"R4", "P0"}),
    )
    def test_known_gap_is_no_disagreement(self, text, reads, writes):
        assert self._check(text, reads, writes).hidden == ()


class LifeRangeTest(parameterized.TestCase):
    _HEAD = (
        "     // |      GPR       | PRED    |",
        "     // |  # 0123        | # 01    |",
    )

    def _parse(self, *rows):
        return liveness.parse([*self._HEAD, *rows])

    def test_marks(self):
        rows = self._parse("  /*0010*/ @P1 IADD3 R1, R2, R3, RZ ;  // |  4 :^vx        | 2 :v    |")
        assert rows == {0x10: Life("@P1 IADD3 R1, R2, R3, RZ", frozenset({"R2", "R3", "P1"}), frozenset({"R1", "R3"}))}

    @parameterized.named_parameters(
        ("unknown_mark", ("  /*0010*/ NOP ;  // |  4 :?           | 2       |",)),
        ("columns_out_of_order", ("     // |  # 0132        | # 01    |",)),
        ("another_number_of_columns", ("     // |  # 0123        |",)),
        ("unknown_file_of_registers", ("     // |  GPR  | ABC |", "     // |  # 01 | # 0 |")),
    )
    def test_what_cannot_be_read_is_refused(self, rows):
        with pytest.raises(UnverifiableError, match=r"life ranges of nvdisasm cannot be read.*must learn the row"):
            self._parse(*rows)
