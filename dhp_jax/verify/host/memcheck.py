"""Runs the kernels with every array marked undefined: memcheck reports each branch and address that depends on one.

It follows the paths that are executed, bit by bit, through registers and memory. It cannot see operand-dependent
latency, and not AVX-512, which valgrind hides from the program.
"""

from __future__ import annotations

import pathlib
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from dhp_jax.verify.host.controls import CONTROLS, missed
from dhp_jax.verify.host.driver import KERNELS, Call, Driver, valgrind
from dhp_jax.verify.host.verdict import Finding, Result
from dhp_jax.verify.verdict import UnverifiableError, Verdict

EVIDENCE = "undefined"
CONTROL_CALL = "small_float32"  # it has every operand that a control reads
_MOST_FRAMES = 4

_Run = tuple[str, str, str]  # kernels, kernel, call
_Numbers = dict[_Run, tuple[int, int]]
_Errors = dict[_Run, list[Finding]]


def run_undefined(driver: Driver, kernels: str, *arguments: str) -> tuple[_Numbers, _Errors]:
    """Runs calls under memcheck.

    Returns:
      For each run the number of errors, and of bytes that it computed from secrets; and for each run with new errors
      what they were. memcheck describes an error at one place in the code once, in the first run that has it. Errors
      outside of a run, while libraries are loaded, do not count.

    Raises:
      UnverifiableError: memcheck is missing, or its report is not whole.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        under = valgrind("memcheck", "--error-limit=no", "--xml=yes", f"--xml-file={report}")
        rows = driver.run("undefined", f"--kernels={kernels}", *arguments, under=under)
        findings = _read_report(report)
    runs: _Numbers = {}
    for fields in rows:
        try:
            name, kernel, call, errors, undefined = fields
            runs[name, kernel, call] = int(errors), int(undefined)
        except ValueError as error:
            raise UnverifiableError(f"the driver printed {fields}, which is no result of a run: {error}") from error
    return runs, findings


def _read_report(path: pathlib.Path) -> _Errors:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise UnverifiableError(f"memcheck's report is not whole: {error}") from error
    run: _Run = ("", "", "")
    findings: _Errors = {}
    for element in root:
        if element.tag == "clientmsg":
            fields = (element.findtext("text") or "").strip().split("\t")
            if len(fields) == 3:
                run = (fields[0], fields[1], fields[2])
        elif element.tag == "error":
            findings.setdefault(run, []).append(_finding(element, run))
    return findings


def _finding(error: ElementTree.Element, run: _Run) -> Finding:
    frames = [_frame(frame) for frame in error.iter("frame")][:_MOST_FRAMES]
    what = error.findtext("what") or error.findtext("xwhat/text") or "error"
    return Finding(Verdict.LEAK, error.findtext("kind") or "", run[2], f"{what}, in {' < '.join(frames)}")


def _frame(frame: ElementTree.Element) -> str:
    where = frame.findtext("fn") or frame.findtext("ip") or "?"
    return f"{where} ({pathlib.PurePath(frame.findtext('obj') or '?').name})"


def check(driver: Driver, kernels: str, calls: Sequence[Call], num_threads: int = 0) -> list[Result]:
    """The verdicts on the kernels of one instruction set, over some calls.

    Args:
      driver: the driver.
      kernels: the instruction set.
      calls: the calls to make.
      num_threads: how many threads the caller lends; 0: none.

    Raises:
      UnverifiableError: the check could not be made.
    """
    names = [f"--call={call.name}" for call in calls]
    runs, errors = run_undefined(driver, kernels, *names, f"--threads={num_threads}")
    results = []
    for kernel in KERNELS:
        expected = [call for call in calls if kernel in call.kernels]
        findings = [f for run, found in errors.items() if run[1] == kernel for f in found]
        for call in expected:
            number, undefined = runs.get((kernels, kernel, call.name), (-1, 0))
            if number < 0:
                findings.append(Finding(Verdict.UNKNOWN, "no-result", call.name, "the driver did not report this call"))
            elif number > 0:
                findings.append(Finding(Verdict.LEAK, "errors", call.name, f"memcheck saw {number} errors"))
            if call.sees_keys and undefined == 0:
                message = "the outputs hold nothing that was computed from secrets"
                findings.append(Finding(Verdict.UNKNOWN, "nothing-secret", call.name, message))
        if expected:
            verdict = Verdict.of_all([Verdict.SAFE, *(finding.verdict for finding in findings)])
            threads = f", {num_threads} threads" if num_threads else ""
            results.append(
                Result(kernels, kernel, EVIDENCE, verdict, f"{len(expected)} calls{threads}", tuple(findings))
            )
    return results


def check_controls(driver: Driver, kernels: str) -> list[Finding]:
    """The controls of one instruction set that memcheck did not report as it must."""
    runs, errors = run_undefined(driver, f"{kernels}:", "--kernel=fwd", f"--call={CONTROL_CALL}")
    findings = []
    kinds = {run[0].partition(":")[2]: {f.rule for f in errors.get(run, []) if runs[run][0]} for run in runs}
    for name in kinds.keys() - CONTROLS.keys():
        findings.append(missed(name, "controls.py does not know this control of the driver"))
    for name, control in CONTROLS.items():
        reported = kinds.get(name, set())
        if control.memcheck and control.memcheck not in reported:
            findings.append(missed(name, f"memcheck must report {control.memcheck}; it reported {sorted(reported)}"))
    return findings
