"""A report says all that a reader needs, in text, JSON and SARIF, and tells predicated branches apart."""

import dataclasses
import hashlib
import json

import sass
from absl.testing import parameterized

from dhp_jax.verify import Part, Policy, Verdict, report, sarif, text
from dhp_jax.verify.rules import RULES

_LEAK = """
    ULDC.64 UR4, c[0x0][0x208]
    LDC.64 R2, c[0x0][0x210]
    LDG.E R4, desc[UR4][R2.64]
    ISETP.NE.AND P0, PT, R4, RZ, PT
    @P0 BRA `(end)
    STL [RZ], R2
"""


def _reports():
    """One leak, one safe kernel, one that is unknown."""
    return [sass.report(_LEAK), sass.report("NOP"), sass.report("BSYNC B0", architecture="sm_80")]


class ContentTest(parameterized.TestCase):
    def test_finding(self):
        (finding,) = sass.report(_LEAK).findings
        assert (finding.rule, finding.name, finding.kernel) == ("CT01", "secret-branch", "kernel")
        assert (finding.address, finding.instruction) == (0x40, "@P0 BRA `(end)")
        assert [str(line) for line in finding.lines] == ["kernel.cu:5"]
        assert [(step.address, step.place) for step in finding.path] == [(0x20, "R4"), (0x30, "P0")]
        assert finding.remedy

    def test_facts_of_the_kernel(self):
        kernel = sass.kernel(_LEAK)
        facts = sass.report(_LEAK)
        assert facts.code_hash == hashlib.sha256(kernel.code).hexdigest()
        assert (facts.architecture, facts.ptxas, facts.registers) == ("sm_90a", "13.0.88", 8)
        assert facts.instructions == 8
        assert facts.spills == 1
        assert facts.declassified == ()

    def test_one_finding_for_each_instruction_and_rule(self):
        # Both words of the address are secret.
        twice = "LDS.64 R4, [RZ] \n LDG.E R6, desc[UR4][R4.64]"
        assert sass.findings(f"ULDC.64 UR4, c[0x0][0x208] \n {twice}") == [("CT02", twice.split("\n")[1].strip())]

    def test_policy_is_told(self):
        policy = Policy(reason="only shapes", secrets=(Part(parameter=1, reason="a length by value"),))
        assert "only shapes" in sass.report("NOP", policy).public
        assert "a length by value" in sass.report("NOP", policy).public

    def test_allow_list_is_an_assumption_where_it_was_not_measured(self):
        (assumption,) = sass.report("NOP", architecture="sm_80").assumptions
        assert "on sm_80" in assumption
        assert "it was measured on sm_90 alone" in assumption

    @parameterized.parameters(
        ([], Verdict.UNKNOWN),
        ([Verdict.SAFE], Verdict.SAFE),
        ([Verdict.SAFE, Verdict.UNKNOWN], Verdict.UNKNOWN),
        ([Verdict.UNKNOWN, Verdict.LEAK, Verdict.SAFE], Verdict.LEAK),
    )
    def test_verdict_of_many(self, verdicts, verdict):
        assert Verdict.of_all(verdicts) is verdict

    def test_finding_and_problem_is_a_leak(self):
        both = sass.report(f"{_LEAK} \n BSYNC B0")
        assert both.verdict is Verdict.LEAK
        assert both.findings
        assert both.problems


class BranchTest(parameterized.TestCase):
    _HEAD = "S2R R5, SR_TID.X \n ISETP.NE.AND P0, PT, R5, RZ, PT \n LDC R6, c[0x0][0x210] \n"

    @parameterized.named_parameters(
        (
            "loop",
            "MOV R7, RZ \n loop: \n IADD3 R7, R7, 0x1, RZ \n ISETP.LT.AND P1, PT, R7, R6, PT \n @P1 BRA `(loop)",
            "loop",
        ),
        (
            "loop_tested_at_its_head",
            "loop: \n ISETP.LT.AND P1, PT, R6, 0x5, PT \n @P1 BRA `(end) \n BRA `(loop)",
            "loop",
        ),
        (
            "wait",
            "S2UR UR4, SR_CTAID.X \n wait: \n SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R6 \n @!P1 BRA `(wait)",
            "wait",
        ),
        (
            "registers",
            "again: \n USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xe8 \n"
            "PLOP3.LUT P1, PT, PT, PT, UP0, 0x80, 0x0 \n @!P1 BRA `(again)",
            "wait",
        ),
        ("role_by_thread", "@P0 BRA `(over) \n NOP \n over:", "role"),
        ("role_by_election", "ELECT P1, URZ, PT \n @!P1 BRA `(over) \n NOP \n over:", "role"),
        ("guard", "ISETP.EQ.AND P1, PT, R6, RZ, PT \n @P1 BRA `(over) \n NOP \n over:", "guard"),
        ("exit", "@P0 EXIT", "exit"),
        ("second_predicate", "ISETP.EQ.AND P1, PT, R6, RZ, PT \n @P1 BRA P0, `(over) \n NOP \n over:", "role"),
        ("secret", "LDS R7, [RZ] \n ISETP.EQ.AND P1, PT, R7, RZ, PT \n @P1 BRA `(over) \n NOP \n over:", "secret"),
    )
    def test_sort(self, code, sort):
        (branch,) = sass.report(self._HEAD + code).branches
        assert branch.sort == sort
        assert branch.line

    @parameterized.parameters(
        "BRA `(over) \n over:", "@!PT BRA `(over) \n over:", "@P0 FADD R1, R5, R5", "@P0 LDS R1, [RZ]"
    )
    def test_what_is_no_predicated_branch(self, code):
        assert sass.report(self._HEAD + code).branches == ()

    def test_counts(self):
        code = self._HEAD + "@P0 EXIT \n @P0 EXIT \n @P0 BRA `(over) \n NOP \n over:"
        assert sass.report(code).branch_counts() == {"exit": 2, "role": 1}


class JsonTest(parameterized.TestCase):
    def test_round_trip(self):
        for made in _reports():
            assert report.from_json(json.loads(json.dumps(report.to_json(made)))) == made

    def test_keys_that_others_read(self):
        data = report.to_json(sass.report(_LEAK))
        assert data["kernel"] == "kernel"
        assert data["verdict"] == "LEAK"
        assert data["findings"][0]["rule"] == "CT01"
        assert data["branch_counts"] == {"secret": 1}
        assert {"code_hash", "architecture", "ptxas", "registers", "shared_bytes", "spills", "instructions"} <= set(
            data
        )


class SarifTest(parameterized.TestCase):
    def test_findings_and_rules(self):
        (run,) = sarif.to_sarif(_reports())["runs"]
        assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.id for rule in RULES]
        assert all(rule["fullDescription"]["text"] and rule["help"]["text"] for rule in run["tool"]["driver"]["rules"])
        (result,) = run["results"]
        (location,) = result["locations"]
        assert result["ruleId"] == "CT01"
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "kernel.cu"
        assert location["physicalLocation"]["region"]["startLine"] == 5
        steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
        assert [step["location"]["physicalLocation"]["region"]["startLine"] for step in steps] == [3, 4]

    def test_unknown_is_no_success(self):
        (run,) = sarif.to_sarif(_reports())["runs"]
        (invocation,) = run["invocations"]
        assert invocation["executionSuccessful"] is False
        assert "BSYNC B0" in invocation["toolExecutionNotifications"][0]["message"]["text"]
        assert sarif.to_sarif([sass.report("NOP")])["runs"][0]["invocations"][0]["executionSuccessful"] is True

    def test_finding_without_line_info(self):
        made = sass.report(_LEAK)
        bare = dataclasses.replace(made, findings=(dataclasses.replace(made.findings[0], lines=(), path=()),))
        (result,) = sarif.to_sarif([bare])["runs"][0]["results"]
        assert "physicalLocation" not in result["locations"][0]
        assert result["codeFlows"] == []


class TextTest(parameterized.TestCase):
    def test_all_is_there(self):
        said = text.render(_reports())
        for part in (
            "LEAK  kernel  sm_90a",
            "CT01 secret-branch: its guard is secret",
            "0x0040  @P0 BRA `(end)",
            "at kernel.cu:5",
            "R4 <- memory at 0x0020  LDG.E R4, desc[UR4][R2.64], kernel.cu:3",
            "P0 <- computed at 0x0030",
            "remedy: Compute both sides",
            "predicated branches: 1 secret",
            "UNKNOWN  kernel  sm_80",
            "unknown: 0x0000: nothing tells where 'BSYNC B0' goes. Avoid recursion",
            "assumed: on sm_80",
            "public by policy: parameters: no policy was given",
            "declassified: nothing",
            "LEAK: 1 SAFE, 1 LEAK, 1 UNKNOWN",
        ):
            assert part in said, part

    def test_secret_that_was_there_before(self):
        assert "R9: never written in this kernel" in text.render([sass.report("LDS R1, [R9]")])

    def test_declassified_places_are_listed(self):
        made = dataclasses.replace(sass.report("NOP"), declassified=("0x10: a reason",))
        assert "declassified: 0x10: a reason" in text.render([made])
