"""Each rule reports what it must and nothing else, and says of itself what a reader needs to know."""

import inspect
import itertools
import re
from unittest import mock

import sass
import zoo
from absl.testing import parameterized

from dhp_jax.verify import Verdict, analysis, opcodes, rules
from dhp_jax.verify.layout import Role
from dhp_jax.verify.rules import RULES

# R4 and P0 are secret, R5, P1 and UR8 are public; UR10 is secret.
_HEAD = """
    ULDC.64 UR4, c[0x0][0x208]
    LDC.64 R2, c[0x0][0x210]
    LDG.E R4, desc[UR4][R2.64]
    ISETP.NE.AND P0, PT, R4, RZ, PT
    S2R R5, SR_TID.X
    ISETP.NE.AND P1, PT, R5, RZ, PT
    S2UR UR8, SR_CTAID.X
    UMOV UR9, URZ
    R2UR UR10, R4
    UMOV UR11, URZ
    VOTEU.ANY UP1, P0
"""


def _rules(instruction, head=_HEAD):
    found = sass.findings(f"{head} \n {instruction}")
    assert {text for _, text in found} <= {instruction}
    return [rule for rule, _ in found]


class LeakTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("branch", "@P0 BRA `(end)", "CT01"),
        ("exit", "@!P0 EXIT", "CT01"),
        ("second_predicate", "@P1 BRA P0, `(end)", "CT01"),
        ("warp_mask", "WARPSYNC R4", "CT01"),
        ("sleep", "NANOSLEEP R4", "CT01"),
        ("trap", "@P0 BPT.TRAP 0x1", "CT01"),
        ("global_address", "LDG.E R9, desc[UR4][R4.64]", "CT02"),
        ("shared_address", "LDS R9, [R4]", "CT02"),
        ("local_address", "LDL R9, [R4]", "CT02"),
        ("store_address", "STS [R4], R5", "CT02"),
        ("constant_index", "LDC R9, c[0x0][R4+0x210]", "CT02"),
        ("descriptor_of_an_access", "LDG.E R9, desc[UR10][R2.64]", "CT02"),
        ("lane", "SHFL.IDX PT, R9, R5, R4, 0x1f", "CT02"),
        ("matrix", "HGMMA.64x8x16.F32 R12, gdesc[UR8], RZ, !UPT", "CT02"),  # UR8 to UR11
        ("cache_line", "CCTL.E.PF2 [R4]", "CT02"),
        ("address_space", "QSPC.E.S P2, RZ, [R4]", "CT02"),
        ("guarded_load", "@P0 LDG.E R9, desc[UR4][R2.64]", "CT03"),
        ("guarded_store", "@P0 STG.E desc[UR4][R2.64], R5", "CT03"),
        ("guarded_constant", "@P0 LDC R9, c[0x0][0x218]", "CT03"),
        ("guarded_approximation", "@P0 MUFU.EX2 R9, R5", "CT03"),
        ("guarded_shuffle", "@P0 SHFL.BFLY PT, R9, R5, 0x1, 0x1f", "CT03"),
        ("guarded_copy", "@P0 LDGSTS.E.128 [R5], desc[UR4][R2.64]", "CT03"),
        ("fill_predicate", "LDGSTS.E.128.ZFILL [R5], desc[UR4][R2.64], P0", "CT03"),
        ("uniform_guard", "@UP1 ULDC UR12, c[0x0][0x218]", "CT03"),
        ("guarded_sum", "@P0 FADD R9, R5, R5", "CT03"),
        ("guarded_product", "@P0 IMAD R9, R5, R5, R5", "CT03"),
        ("guarded_sum_with_carry", "@P0 IADD3.X R9, R5, R5, RZ, P1, !PT", "CT03"),
        ("guarded_uniform_shift", "@UP1 USHF.L.U32 UR12, UR9, 0x1, URZ", "CT03"),
        ("conversion", "F2I.TRUNC.NTZ R9, R4", "CT04"),
        ("sine", "MUFU.SIN R9, R4", "CT04"),
        ("division_check", "FCHK P2, R4, R5", "CT04"),
        ("population_count", "POPC R9, R4", "CT04"),
        ("match", "MATCH.ANY R9, R4", "CT04"),
        ("warp_reduction", "REDUX UR12, R4", "CT04"),
        ("barrier_reduction", "BAR.RED.OR.DEFER_BLOCKING 0x0, P0", "CT04"),
        ("atomic_of_a_secret", "ATOMS.INC RZ, [RZ], R4", "CT05"),
        ("reduction_of_a_secret", "REDG.E.ADD.STRONG.GPU desc[UR4][R2.64], R4", "CT05"),
        ("guarded_atomic", "@P0 REDG.E.ADD.STRONG.GPU desc[UR4][R2.64], R5", "CT05"),
        ("reducing_copy", "UBLKRED.G.S.ADD.F32.RN [UR8], [UR9], UR9", "CT05"),
        ("guarded_barrier", "@P0 BAR.SYNC.DEFER_BLOCKING 0x0", "CT06"),
        ("barrier_number", "BAR.SYNC.DEFER_BLOCKING R4, 0x40", "CT06"),
        ("arrival", "@P0 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR8], RZ", "CT06"),
        ("expected_bytes", "SYNCS.ARRIVE.TRANS64 RZ, [UR8], R4", "CT06"),
        ("parity", "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR8], R4", "CT06"),
        ("election", "ELECT P2, URZ, P0", "CT06"),
        ("fence", "@P0 MEMBAR.ALL.GPU", "CT06"),
        ("registers", "@UP1 USETMAXREG.DEALLOC.CTAPOOL 0x28", "CT06"),
        ("cluster", "@UP1 UCGABAR_ARV", "CT06"),
        ("cycle_counter", "CS2R R12, SR_CLOCKLO", "CT07"),
        ("timer", "CS2R R12, SR_GLOBALTIMERLO", "CT07"),
        ("spill", "STL [RZ], R4", "CT08"),
    )
    def test_is_reported(self, instruction, rule):
        assert _rules(instruction) == [rule]

    def test_tensor_map_outside_the_parameters(self):
        copy = "UTMALDG.1D [UR20], [UR24]"
        coordinates = "\n".join(f"UMOV UR{20 + i}, URZ" for i in range(3))
        assert _rules(copy, f"ULDC.64 UR24, c[0x0][0x210] \n {coordinates}") == ["CT02"]
        assert _rules(copy, f"ULDC.64 UR24, c[0x0][0x198] \n {coordinates}") == []

    @parameterized.named_parameters(
        ("histogram", "ATOMS.INC RZ, [R4], R5", ["CT02", "CT05"]),
        ("guarded_gather", "@P0 LDG.E R9, desc[UR4][R4.64]", ["CT02", "CT03"]),
        ("guarded_conversion", "@P0 F2I.TRUNC.NTZ R9, R4", ["CT03", "CT04"]),
        ("spill_at_a_secret_place", "STL [R4], R4", ["CT02", "CT08"]),
        ("arrival_at_a_secret_barrier", "SYNCS.ARRIVE.TRANS64 RZ, [R4+UR8], R4", ["CT02", "CT06"]),
    )
    def test_several_rules_may_speak(self, instruction, expected):
        head = _HEAD + "MOV R5, RZ"
        assert _rules(instruction, head) == expected


class AcceptedTest(parameterized.TestCase):
    @parameterized.parameters(
        "@P0 IADD3 R9, R5, R5, RZ",
        "@P0 LOP3.LUT R9, R4, R4, R4, 0x80, !PT",
        "@P0 FMNMX R9, R4, R5, !PT",
        "SEL R9, R4, R5, P0",
        "FSETP.GT.AND P2, PT, R4, RZ, P0",
        "MUFU.EX2 R9, R4",
        "SHFL.BFLY PT, R9, R4, 0x1, 0x1f",
        "STG.E desc[UR4][R2.64], R4",
        "STS [RZ], R4",
        "HMMA.1688.F32 R12, R4, R4, RZ",
        "F2FP.BF16.F32.PACK_AB R9, R4, R4",
        "@P1 LDG.E R9, desc[UR4][R2.64]",
        "@P1 BRA `(end)",
        "@P1 BAR.SYNC.DEFER_BLOCKING 0x0",
        "I2F R9, R5",
        "ATOMS.INC RZ, [RZ], R5",
        "STL [RZ], R5",
        "@!PT LDS R9, [R4]",
        "VOTE.ANY P2, P0",
        "BAR.RED.OR.DEFER_BLOCKING 0x0, P1",
    )
    def test_is_not_reported(self, instruction):
        assert _rules(instruction) == []


class DefaultDenyTest(parameterized.TestCase):
    """A secret where the table admits none is reported by a rule; should all be silent, the kernel is UNKNOWN."""

    def test_a_rule_speaks_of_every_use_that_the_table_has(self):
        spoken = {
            opcodes.Family.ALU: {Role.ADDRESS},
            opcodes.Family.QUEUE: {Role.ADDRESS, Role.LANE, Role.GATE, Role.DATA},
            opcodes.Family.MEMORY: {Role.ADDRESS, Role.GATE},
            opcodes.Family.ATOMIC: set(Role),
            opcodes.Family.BARRIER: {Role.ADDRESS, Role.MEETING, Role.DATA},
            opcodes.Family.FLOW: {Role.FLOW, Role.DATA},
        }
        for line in itertools.chain(*opcodes.TABLE.values()):
            roles = {slot.role for slot in line.slots if not slot.destination and slot.sort not in "ILSBK"}
            admitted = {Role.DATA} if line.admits is not opcodes.Admits.NOTHING else set()
            assert roles - admitted <= spoken[line.family], line.name

    def test_silence_is_unknown(self):
        branch = f"{_HEAD} \n @P0 BRA `(end)"
        assert sass.report(branch).verdict is Verdict.LEAK
        silent = tuple(rule for rule in RULES if rule.id != "CT01")
        with mock.patch.object(analysis, "RULES", silent):
            report = sass.report(branch)
        assert report.verdict is Verdict.UNKNOWN
        assert "a secret reaches '@P0 BRA `(end)'; no rule speaks of it" in report.problems[0].problem


class DocumentationTest(parameterized.TestCase):
    @parameterized.parameters(*((rule,) for rule in RULES))
    def test_rule_says_what_a_reader_needs(self, rule):
        text = inspect.cleandoc(type(rule).__doc__)
        assert re.findall(r"^(\w+):", text, re.MULTILINE) == ["Catches", "Why", "Misses", "Fix", "Control"]
        assert rule.remedy.endswith(".")

    def test_ids_are_all_and_in_order(self):
        assert [rule.id for rule in RULES] == [f"CT{number:02}" for number in range(1, 9)]
        assert set(rules.__all__) == {"RULES", "Offence", "Rule"}

    @parameterized.parameters(*((rule,) for rule in RULES))
    def test_controls_that_it_names_exist(self, rule):
        control = inspect.cleandoc(type(rule).__doc__).partition("Control:")[2]
        files = re.findall(r"tests/[\w/.]+\w", control)
        assert files
        assert [name for name in files if not (zoo.ROOT / name).exists()] == []
        cases = {kernel.case for kernel in zoo.kernels()}
        named = re.findall(r"L(\d+)([a-m]?)", control)
        assert {f"L{int(number):02}{way}" for number, way in named} <= cases
