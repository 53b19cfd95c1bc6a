"""Each form in which nvdisasm writes an instruction is taken apart; what has no known form is refused."""

import pytest
from absl.testing import parameterized

from dhp_jax.verify import UnverifiableError, opcodes, registers
from dhp_jax.verify import instruction as parser
from dhp_jax.verify.instruction import Kind


def _operand(text):
    (operand,) = parser.parse(0, f"MOV {text}").operands
    return operand


class InstructionTest(parameterized.TestCase):
    def test_parts(self):
        parsed = parser.parse(0x40, "@!P3 IMAD.WIDE.U32  R4, R5.reuse, 0x4, R6")
        assert (parsed.address, parsed.opcode, parsed.modifiers) == (0x40, "IMAD", ("WIDE", "U32"))
        assert (parsed.guard.name, parsed.guard.negated, parsed.guarded) == ("P3", True, True)
        assert [operand.name for operand in parsed.operands] == ["R4", "R5", "", "R6"]
        assert parsed.text == "@!P3 IMAD.WIDE.U32 R4, R5.reuse, 0x4, R6"

    @parameterized.named_parameters(
        ("constant_false", "@!PT LDS RZ, [RZ]", True, False),
        ("constant_true", "@PT EXIT", False, False),
        ("uniform", "@!UP0 SYNCS.EXCH.64 URZ, [UR6], UR4", False, True),
        ("none", "EXIT", False, False),
    )
    def test_guard(self, text, never, guarded):
        parsed = parser.parse(0, text)
        assert (parsed.never, parsed.guarded) == (never, guarded)

    def test_targets_of_a_jump_table(self):
        parsed = parser.parse(0, 'BRX R6 -0x130 (*"BRANCH_TARGETS .L_x_51,.L_x_52"*)')
        assert parsed.targets == (".L_x_51", ".L_x_52")
        assert [operand.kind for operand in parsed.operands] == [Kind.REGISTER, Kind.IMMEDIATE]

    def test_comment_on_a_spill(self):
        parsed = parser.parse(0, 'STL [R1+0x90], R19                      (*"SpillRefill"*)')
        assert (parsed.opcode, len(parsed.operands), parsed.targets) == ("STL", 2, ())

    def test_label_after_a_register(self):
        parsed = parser.parse(0, "CALL.REL.NOINC R2 `(_Z8indirectPKfPfi)")
        assert [operand.name for operand in parsed.operands] == ["R2", "_Z8indirectPKfPfi"]

    def test_commas_inside_braces_do_not_part_operands(self):
        assert [operand.text for operand in parser.parse(0, "DEPBAR.LE SB0, 0x1, {5,4}").operands] == [
            "SB0",
            "0x1",
            "{5,4}",
        ]


class OperandTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("register", "R12", Kind.REGISTER, "R12"),
        ("zero", "RZ", Kind.REGISTER, "RZ"),
        ("uniform", "UR63", Kind.REGISTER, "UR63"),
        ("predicate", "!P0", Kind.PREDICATE, "P0"),
        ("uniform_predicate", "UP6", Kind.PREDICATE, "UP6"),
        ("all_predicates", "PR", Kind.PREDICATES, "PR"),
        ("special", "SR_CTAID.X", Kind.SPECIAL, "SR_CTAID.X"),
        ("zero_special", "SRZ", Kind.SPECIAL, "SRZ"),
        ("barrier", "B15", Kind.BARRIER, "B15"),
        ("scoreboard", "SB0", Kind.SCOREBOARD, "SB0"),
        ("group", "gsb0", Kind.SCOREBOARD, "gsb0"),
        ("label", "`(.L_x_3)", Kind.LABEL, ".L_x_3"),
        ("matrix", "gdesc[UR8].tnspB", Kind.MATRIX, "UR8"),
        ("descriptor", "desc[UR4]", Kind.DESCRIPTOR, "UR4"),
    )
    def test_name(self, text, kind, name):
        operand = _operand(text)
        assert (operand.kind, operand.name) == (kind, name)

    @parameterized.parameters("-R2", "~R2", "-|R2|", "-R2.reuse", "-R2.reuse.H0_H0", "-c[0x0][0x210]", "~UR4")
    def test_negation(self, text):
        assert _operand(text).negated

    @parameterized.parameters("R2", "|R2|", "R2.H1_H1", "c[0x0][0x210]")
    def test_no_negation(self, text):
        assert not _operand(text).negated

    @parameterized.parameters(("0x1f", 31), ("-0x400", -1024), ("7", 7))
    def test_number(self, text, value):
        assert _operand(text).value == value

    @parameterized.parameters("1.5", "-0.0001", "1.1920928955078125e-07", "+INF", "-QNAN", "2.5e+38")
    def test_float_has_no_value(self, text):
        operand = _operand(text)
        assert (operand.kind, operand.value) == (Kind.IMMEDIATE, None)

    @parameterized.named_parameters(
        ("plain", "c[0x0][0x210]", 0, 0x210, []),
        ("indexed", "c[0x3][R7+0x10]", 3, 0x10, ["R7"]),
        ("indexed_alone", "c[0x2][R7]", 2, 0, ["R7"]),
        ("uniform", "c[0x0][UR4+0x20]", 0, 0x20, ["UR4"]),
        ("zero", "c[0x0][RZ]", 0, 0, ["RZ"]),
    )
    def test_constant(self, text, bank, offset, inner):
        operand = _operand(text)
        assert (operand.kind, operand.bank, operand.value) == (Kind.CONSTANT, bank, offset)
        assert [register.name for register in operand.inner] == inner

    def test_bank_in_a_register(self):
        operand = _operand("cx[UR4][0x10]")
        assert (operand.kind, operand.inner[0].name) == (Kind.BINDLESS, "UR4")

    @parameterized.named_parameters(
        ("register", "[R6]", ["R6"], 0, False),
        ("sum", "[R6+UR4+0x200]", ["R6", "UR4"], 0x200, False),
        ("negative", "[R0+-0x400]", ["R0"], -0x400, False),
        ("absolute", "[0x10]", [], 0x10, False),
        ("scaled", "[R3.X4+0x8]", ["R3"], 8, False),
        ("described", "desc[UR4][R2.64+0x8]", ["UR4", "R2"], 8, True),
    )
    def test_address(self, text, inner, offset, has_descriptor):
        operand = _operand(text)
        assert (operand.kind, operand.value, operand.has_descriptor) == (Kind.ADDRESS, offset, has_descriptor)
        assert [register.name for register in operand.inner] == inner

    def test_suffixes_without_reuse(self):
        assert _operand("R2.reuse.H1_H1").suffixes == ("H1_H1",)


class RefusalTest(parameterized.TestCase):
    @parameterized.parameters("", "mov R1, R2", "@P7X MOV R1, R2", "@P0", "MOV. R1", ";")
    def test_what_is_no_instruction(self, text):
        with pytest.raises(UnverifiableError, match=r"0x0030: no instruction.*Use an nvdisasm that was tested"):
            parser.parse(0x30, text)

    @parameterized.parameters(
        "R", "Q7", "R1+", "[R1", "[R1-R2]", "c[0x0]", "c[R1][0x0]", "R1 R2]", "(*", '(*"Frob"*)', "desc[R4][R2]"
    )
    def test_unknown_operand(self, text):
        with pytest.raises(UnverifiableError, match=r"unknown operand .*parser must learn it"):
            parser.parse(0, f"MOV R1, {text}")


class TableTest(parameterized.TestCase):
    """What the table of opcodes does not have is refused: opcode, modifier, form."""

    @parameterized.named_parameters(
        ("opcode", "FROB R1, R2", "unknown opcode"),
        ("modifier", "IADD3.FROB R1, R2, R3, R4", "unknown modifier"),
        ("approximation", "MUFU.FROB R1, R2", "unknown modifier"),
        ("approximation_of_two_halves", "MUFU.EX2.F16 R1, R2", "unknown modifier"),
        ("too_few_operands", "IADD3 R1, R2", "unknown form"),
        ("too_many_operands", "IADD3 R1, R2, R3, R4, R5, R6", "unknown form"),
        ("wrong_sort", "IADD3 R1, R2, [R3], R4", "unknown form"),
        ("destination_is_no_register", "MOV 0x1, R2", "unknown form"),
        ("state_of_the_convergence_unit", "BMOV.32 MACTIVE, R2", "unknown operand"),
    )
    def test_is_refused(self, text, problem):
        with pytest.raises(UnverifiableError, match=problem) as refusal:
            opcodes.known(parser.parse(0, text))
        assert refusal.value.remedy

    @parameterized.parameters(
        "HMMA R0, R2, R4, R6", "HMMA.F32 R0, R2, R4, R6", "UTMALDG [UR4], [UR6]", "UBLKCP.S [UR4], [UR6], UR8"
    )
    def test_unknown_size_is_refused(self, text):
        with pytest.raises(UnverifiableError, match=r"unknown size of operands.*verify/widths.py"):
            registers.effect(parser.parse(0, text))

    def test_every_line_has_a_reason(self):
        for lines in opcodes.TABLE.values():
            assert all(len(line.reason) > 30 for line in lines)

    def test_nothing_secret_may_guard_what_waits_or_touches_memory(self):
        for lines in opcodes.TABLE.values():
            for line in lines:
                assert line.admits is not opcodes.Admits.EVERYTHING or line.family is opcodes.Family.ALU
