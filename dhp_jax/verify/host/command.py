"""`python -m dhp_jax.verify --host`: all checks of the host kernels, one table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import traceback
from collections.abc import Callable, Collection, Sequence

from dhp_jax.verify.host import counts, machine_code, memcheck, subnormals
from dhp_jax.verify.host.driver import Driver, find
from dhp_jax.verify.host.verdict import Finding, Result
from dhp_jax.verify.verdict import UnverifiableError, Verdict

HIDDEN_BY_VALGRIND = "avx512"
COVERAGE = "coverage"

# A call or two for each way through the kernels; every sort of secret or every length multiplies them.
_COUNTED_CALLS = (
    *("causal_float32", "window_float16", "decode_bfloat16", "head_256_bfloat16", "mapped_float32"),
    *("mask_full_float32", "mask_queries_bfloat16", "bias_full_float16", "everything_float32", "everything_bfloat16"),
)
_CALLS_OF_EVERY_LENGTH = ("both_lengths_float32", "both_lengths_bfloat16")
_THREADED_CALLS = ("everything_float16", "causal_float32")
_NUM_THREADS = 3
_TIMED_CALL = "bias_full_float32"
_FLUSHED_CALLS = ("plain_float32", "plain_bfloat16", "bias_full_float32")
_MOST_FINDINGS = 8  # printed for each result


def main(arguments: Sequence[str]) -> int:
    """Checks the host kernels and prints what was found.

    Args:
      arguments: those of the command line, after `--host`.

    Returns:
      The exit status: 0 where everything is SAFE, 1 where anything LEAKs, else 2.
    """
    parser = argparse.ArgumentParser("python -m dhp_jax.verify --host", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--evidence", choices=EVIDENCE, action="append", help="only this; may be given again")
    parser.add_argument("--kernels", action="append", help="only this instruction set, as avx2; may be given again")
    parser.add_argument("--folder", type=pathlib.Path, help="where the driver and the library are, if not installed")
    options = parser.parse_args(arguments)
    about = {}
    try:
        driver = find(options.folder)
        about = {"library": str(driver.library), "sha256": machine_code.digest(driver.library)}
        results = verify(driver, options.evidence or EVIDENCE, options.kernels)
    except UnverifiableError as error:
        results = [_skipped("all", "all", error)]
    except Exception:  # a defect of this check: Python's own exit status, 1, would say that a kernel leaks
        traceback.print_exc()
        return Verdict.UNKNOWN.value
    verdict = Verdict.of_all(result.verdict for result in results)
    print(_as_json(about, results, verdict) if options.json else _as_text(about, results, verdict))
    return verdict.value


def verify(driver: Driver, evidence: Collection[str], chosen: Collection[str] | None = None) -> list[Result]:
    """The checks of some sorts of evidence, of the instruction sets that each can judge.

    Args:
      driver: the driver.
      evidence: the sorts of evidence.
      chosen: instruction sets; None: all in the library.

    Raises:
      UnverifiableError: the library does not have a chosen instruction set.
    """
    runnable = driver.kernels()
    for kernels in chosen or ():
        if kernels not in runnable:
            raise UnverifiableError(
                f"--kernels {kernels} was passed; the library has kernels for {', '.join(runnable)}. Pass one of these"
            )
    results: list[Result] = []
    for sort, check in _CHECKS.items():
        if sort not in evidence:
            continue
        for kernels in chosen or runnable:
            if sort != machine_code.EVIDENCE and not runnable[kernels]:
                continue
            if sort in _UNDER_VALGRIND and kernels == HIDDEN_BY_VALGRIND:
                continue
            try:
                results += check(driver, kernels)
            except UnverifiableError as error:
                results.append(_skipped(kernels, sort, error))
    return results


def _skipped(kernels: str, evidence: str, error: UnverifiableError) -> Result:
    return Result(kernels, "all", evidence, Verdict.UNKNOWN, f"SKIPPED: {error}.")


def voided(results: Sequence[Result], missed: Sequence[Finding]) -> list[Result]:
    """The results as they are where no control was missed; else nothing is SAFE any more."""
    if not missed:
        return list(results)
    return [
        dataclasses.replace(
            result, verdict=Verdict.of_all([result.verdict, Verdict.UNKNOWN]), findings=(*missed, *result.findings)
        )
        for result in results
    ]


def _check_machine_code(driver: Driver, kernels: str) -> list[Result]:
    results, _ = machine_code.check(driver.library, kernels)
    return voided(results, machine_code.check_controls(driver.program, driver.library, kernels))


def _check_undefined(driver: Driver, kernels: str) -> list[Result]:
    calls = driver.calls()
    results = memcheck.check(driver, kernels, calls)
    results += memcheck.check(driver, kernels, [c for c in calls if c.name in _THREADED_CALLS], _NUM_THREADS)
    return voided(results, memcheck.check_controls(driver, kernels))


def _check_counts(driver: Driver, kernels: str) -> list[Result]:
    results = counts.check(driver, kernels, _COUNTED_CALLS, _CALLS_OF_EVERY_LENGTH)
    return voided(results, counts.check_controls(driver, kernels))


def _check_subnormals(driver: Driver, kernels: str) -> list[Result]:
    return subnormals.check(driver, kernels, _TIMED_CALL, _FLUSHED_CALLS)


def check_coverage(driver: Driver, kernels: str, calls: Sequence[str] = ()) -> list[Result]:
    """Whether the walk through the machine code reaches all that is executed, and how much of it is executed.

    Args:
      driver: the driver.
      kernels: the instruction set.
      calls: the calls to execute; empty: all.

    Raises:
      UnverifiableError: the check could not be made.
    """
    _, reached = machine_code.check(driver.library, kernels)
    executed = counts.covered(driver, kernels, calls)
    findings = [
        Finding(Verdict.UNKNOWN, "not-reached", f"{address:#x}", "this instruction is executed, and was not walked")
        for address in sorted(executed - reached)
    ]
    share = len(executed & reached) / len(reached) if reached else 0.0
    detail = f"the calls execute {share:.0%} of the instructions that the walk reaches, and {len(findings)} others"
    verdict = Verdict.SAFE if executed and not findings else Verdict.UNKNOWN
    return [Result(kernels, "all", COVERAGE, verdict, detail, tuple(findings))]


_CHECKS: dict[str, Callable[[Driver, str], list[Result]]] = {
    machine_code.EVIDENCE: _check_machine_code,
    memcheck.EVIDENCE: _check_undefined,
    counts.EVIDENCE: _check_counts,
    COVERAGE: check_coverage,
    subnormals.EVIDENCE: _check_subnormals,
}
_UNDER_VALGRIND = (memcheck.EVIDENCE, counts.EVIDENCE, COVERAGE)
EVIDENCE = tuple(_CHECKS)


def _as_json(about: dict[str, str], results: Sequence[Result], verdict: Verdict) -> str:
    rows = [
        {
            **{name: getattr(result, name) for name in ("kernels", "kernel", "evidence", "detail")},
            "verdict": result.verdict.name,
            "findings": [{**dataclasses.asdict(f), "verdict": f.verdict.name} for f in result.findings],
        }
        for result in results
    ]
    return json.dumps({**about, "verdict": verdict.name, "results": rows}, indent=2)


def _as_text(about: dict[str, str], results: Sequence[Result], verdict: Verdict) -> str:
    lines = [f"{name}: {value}" for name, value in about.items()]
    row = "{:<10} {:<9} {:<13} {:<8} {}"
    lines.append(row.format("kernels", "kernel", "evidence", "verdict", "what was done"))
    for result in results:
        lines.append(row.format(result.kernels, result.kernel, result.evidence, result.verdict.name, result.detail))
        shown = result.findings[:_MOST_FINDINGS]
        lines += [f"    {f.verdict.name} {f.rule} at {f.place}: {f.detail}" for f in shown]
        if len(result.findings) > len(shown):
            lines.append(f"    and {len(result.findings) - len(shown)} more; --json lists all")
    return "\n".join([*lines, f"verdict: {verdict.name}"])
