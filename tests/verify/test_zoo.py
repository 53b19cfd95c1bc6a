"""The verifier reports each leak of tests/leaky by the right rule on the right line, and nothing else."""

import dataclasses
import functools
import os
import pathlib
import re
from unittest import mock

import nvcc
import pytest
import zoo
from absl.testing import parameterized

from dhp_jax.verify import Part, Policies, Policy, Verdict, cubin
from dhp_jax.verify.analysis import verify_kernel

_ROW = re.compile(r"\| ([LBXY]\d\d[a-m]?) \| ([\w.]+) \| (\w+) \| ([^|]+) \| ([^|]+) \| (.+) \|")


@functools.cache
def _kernels(file, architecture):
    """The compiled kernels of a file, by name, as the verifier reads them."""
    found = cubin.kernels(zoo.cubin(file, architecture).read_bytes())
    return {kernel.name.partition("(")[0]: kernel for kernel in found}


@functools.cache
def _reports(file, architecture):
    """What the verifier says of them, by name."""
    policies = _policies(file)
    found = _kernels(file, architecture)
    return {name: verify_kernel(kernel, policies.of(kernel.name)) for name, kernel in found.items()}


def _policies(file):
    why = "tests/leaky says so"
    entries = [
        Policy(
            name=kernel.name,
            secrets=tuple(Part(parameter=index, reason=why) for index in kernel.secret_scalars),
            public_buffers=tuple(Part(parameter=index, reason=why) for index in kernel.public_buffers),
            guarded_arithmetic=why if kernel.guarded_arithmetic else "",
        )
        for kernel in zoo.kernels()
        if kernel.file == file
    ]
    return Policies(entries=tuple(entries), strict=True)


def _line_of(finding, kernel):
    """The innermost line in the kernel's own file; 0 where there is none."""
    return next((line.line for line in finding.lines if pathlib.Path(line.file).name == kernel.file.name), 0)


def disagreements(kernel, architecture, report):
    """All in which a report differs from what the source expects."""
    expected = kernel.expected(architecture)
    reported = {zoo.Finding(_line_of(finding, kernel), finding.rule): finding for finding in report.findings}
    wanted = Verdict.LEAK if expected else Verdict.SAFE
    said = [f"verdict {report.verdict.name}, expected {wanted.name}"] if report.verdict is not wanted else []
    said += [f"not reported: {missing}" for missing in sorted(expected - set(reported))]
    for extra in sorted(set(reported) - expected):
        finding = reported[extra]
        said.append(f"not expected: {extra}, {finding.address:#x} {finding.instruction}: {finding.problem}")
    if report.verdict is not Verdict.LEAK:
        said += [f"problem: {problem.problem}" for problem in report.problems]
    return said


def _compiled_kernels():
    return [(f"{k.name}_{where}", k, where) for k in zoo.kernels() for where in k.architectures]


class ZooTest(parameterized.TestCase):
    @parameterized.named_parameters(_compiled_kernels())
    def test_is_reported_as_expected(self, kernel, architecture):
        complaints = disagreements(kernel, architecture, _reports(kernel.file, architecture)[kernel.name])
        assert not complaints, "\n".join(complaints)

    @parameterized.named_parameters(*[item for item in _compiled_kernels() if item[1].guarded_arithmetic])
    def test_guarded_arithmetic_is_a_leak_where_the_policy_does_not_allow_it(self, kernel, architecture):
        """An H200 takes less time for arithmetic that a whole warp skips (benchmarks/results, latency)."""
        policy = dataclasses.replace(_policies(kernel.file).of(kernel.name), guarded_arithmetic="")
        report = verify_kernel(_kernels(kernel.file, architecture)[kernel.name], policy)
        found = [finding.instruction for finding in report.findings if finding.rule == "CT03"]
        if kernel.name == "B15_division_of_secret" and architecture == "sm_80":
            assert report.verdict is Verdict.SAFE  # there the guarded sum is an IADD3
        else:
            assert report.verdict is Verdict.LEAK
            assert any(re.match(r"@!?P\d (FADD|FMUL|FFMA|VIADD|IMAD|MOV)", instruction) for instruction in found)

    @parameterized.named_parameters(_compiled_kernels())
    def test_machine_code_has_the_form(self, kernel, architecture):
        listing = _kernels(kernel.file, architecture)[kernel.name].listing
        code = [listed.instruction.text for listed in listing.code]
        signs = [pattern for where, pattern in kernel.signs if where in (None, architecture)]
        assert signs, "a kernel without a sign could become something else unseen"
        assert [sign for sign in signs if not any(re.search(sign, instruction) for instruction in code)] == []

    def test_every_kernel_says_what_it_does(self):
        assert [kernel.name for kernel in zoo.kernels() if not kernel.summary] == []

    def test_every_case_is_there(self):
        cases = {kernel.case for kernel in zoo.kernels()}
        expected = {f"L{i:02}" for i in range(1, 29)} | {f"L29{letter}" for letter in "abcdefghijklm"}
        expected |= {f"B{i:02}" for i in range(1, 18)}
        assert {case for case in cases if case[0] in "LB"} == expected

    def test_leaks_are_told_twice(self):
        """Once with query or key data as the secret, once with a length, a mask or a segment."""
        names = [kernel.name for kernel in zoo.kernels() if re.match(r"L(?!29)", kernel.name)]
        alone = [name for name in names if sum(other[:3] == name[:3] for other in names) < 2]
        assert alone == []

    def test_readme_lists_every_kernel(self):
        rows = _ROW.findall((zoo.FOLDER / "README.md").read_text(encoding="utf-8"))
        listed = [row[:3] + row[4:] for row in rows]
        expected = [_readme_row(kernel) for kernel in zoo.kernels()]
        missing = [row for row in expected if row not in listed]
        stale = [row for row in listed if row not in expected]
        assert (missing, stale, len(listed)) == ([], [], len(expected))


def _readme_row(kernel):
    case, _, name = kernel.name.partition("_")
    signs = ", ".join(f"{where} `{pattern}`" if where else f"`{pattern}`" for where, pattern in kernel.signs)
    where = {}
    for architecture, finding in kernel.expectations:
        where.setdefault(finding.rule, set()).add(architecture)
    rules = [rule if None in where[rule] else f"{rule} on {', '.join(sorted(where[rule]))}" for rule in sorted(where)]
    return case, kernel.file.name, name, ", ".join(rules) or "SAFE", signs


_LEAK, _SAFE = "L17_gather_at_token", "B14_shared_memory"


def _kernel(name):
    (kernel,) = [kernel for kernel in zoo.kernels() if kernel.name == name]
    return kernel


class ExpectationControlTest(parameterized.TestCase):
    """An expectation that is wrong fails."""

    @parameterized.named_parameters(
        ("another_line", lambda line, rule: [zoo.Finding(line + 1, rule)], "not reported", "not expected"),
        ("another_rule", lambda line, rule: [zoo.Finding(line, "CT01")], "not reported", "not expected"),
        ("one_too_many", lambda line, rule: [zoo.Finding(line, rule), zoo.Finding(line, "CT03")], "not reported"),
        ("none", lambda line, rule: [], "verdict LEAK, expected SAFE", "not expected"),
    )
    def test_about_a_leak(self, wrong, *said):
        kernel = _kernel(_LEAK)
        ((_, finding),) = kernel.expectations
        expectations = tuple((None, expected) for expected in wrong(finding.line, finding.rule))
        report = _reports(kernel.file, "sm_80")[kernel.name]
        complaints = disagreements(dataclasses.replace(kernel, expectations=expectations), "sm_80", report)
        assert [complaint.startswith(part) for complaint, part in zip(complaints, said, strict=True)] == [True] * len(
            said
        )

    def test_about_a_benign_kernel(self):
        kernel = _kernel(_SAFE)
        wrong = dataclasses.replace(kernel, expectations=((None, zoo.Finding(kernel.lines[2], "CT02")),))
        complaints = disagreements(wrong, "sm_80", _reports(kernel.file, "sm_80")[kernel.name])
        assert complaints[0] == "verdict SAFE, expected LEAK"

    def test_unknown_is_neither(self):
        kernel = _kernel(_SAFE)
        report = _reports(kernel.file, "sm_80")[kernel.name]
        unknown = dataclasses.replace(report, verdict=Verdict.UNKNOWN)
        assert disagreements(kernel, "sm_80", unknown) == ["verdict UNKNOWN, expected SAFE"]

    def test_what_an_architecture_expects_counts_there_alone(self):
        kernel = _kernel("L26_parameter_under_guard")
        assert [bool(kernel.expected(where)) for where in zoo.ARCHITECTURES] == [False, True]


_HEAD = "// Does nothing.\n//\n// sass: EXIT\n"
_BODY = "__global__ void L01_x(int* out) {\n  out[0] = 1;%s\n}\n"


class MarkTest(parameterized.TestCase):
    """A mark that says nothing is an error, not a kernel that expects nothing."""

    @parameterized.named_parameters(
        ("rule", _HEAD + _BODY % "  // expect: CT2", "is no list of"),
        ("architecture", _HEAD + _BODY % "  // expect: CT02 on sm_91", "is no list of"),
        ("separator", _HEAD + _BODY % "  // expect: CT02 CT03", "is no list of"),
        ("colon", _HEAD + _BODY % "  // expect CT02", "does not read"),
        ("capital", _HEAD + _BODY % "  // Expect: CT02", "does not read"),
        ("alone_on_its_line", _HEAD + _BODY % "\n// expect: CT02", "is no list of"),
        ("policy", _HEAD + "// policy: secret 0\n" + _BODY % "  // expect: CT02", "is not of a form"),
        ("outside", "// expect: SAFE\n\n" + _HEAD + _BODY % "  // expect: CT02", "outside any kernel"),
        ("nothing_expected", _HEAD + _BODY % "", "findings or SAFE"),
        ("both_expected", _HEAD + "// expect: SAFE\n" + _BODY % "  // expect: CT02", "findings or SAFE"),
    )
    def test_is_refused(self, source, message):
        with pytest.raises(ValueError, match=message):
            zoo.parse(pathlib.Path("x.cu"), source)

    def test_marks_are_read(self):
        marks = _HEAD + "// sass on sm_80: LDG\n// policy: secret scalar 0\n// policy: public buffer 2\n"
        (kernel,) = zoo.parse(pathlib.Path("x.cu"), marks + _BODY % "  // expect: CT02, CT03 on sm_80")
        assert kernel.signs == ((None, "EXIT"), ("sm_80", "LDG"))
        assert (kernel.secret_scalars, kernel.public_buffers) == ((0,), (2,))
        assert kernel.expected("sm_90a") == {zoo.Finding(8, "CT02")}
        assert kernel.expected("sm_80") == {zoo.Finding(8, "CT02"), zoo.Finding(8, "CT03")}


class ToolTest(parameterized.TestCase):
    """Without a compiler the tests are skipped, but not in CI, where that would go unseen."""

    @parameterized.parameters(({}, "skipped"), ({"CI": "true"}, "failed"))
    def test_no_compiler(self, environment, outcome):
        exceptions = {"skipped": pytest.skip.Exception, "failed": pytest.fail.Exception}
        with mock.patch.dict("os.environ", environment), mock.patch.object(nvcc, "_find", return_value=None):
            if not environment:
                os.environ.pop("CI", None)
            with pytest.raises(exceptions[outcome], match="nvcc of CUDA 13"):
                zoo.cubin(zoo.files()[0], "sm_80")
