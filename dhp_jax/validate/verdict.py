"""All checks -> clearance, or what is missing, and the exit status."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Sequence

from dhp_jax.validate.outcome import Check, Status


class Exit(enum.IntEnum):
    """Exit statuses of the command."""

    CLEARED = 0
    FAILED = 1
    INCOMPLETE = 3  # nothing failed, but mandatory checks were skipped, unknown or absent


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The end of a run.

    Attributes:
        status: the exit status.
        line: the clearance line, or in its place what is missing.
        missing: a line for each mandatory check that did not pass, and for each other one that failed.
    """

    status: Exit
    line: str
    missing: tuple[str, ...] = ()


def judge(checks: Sequence[Check], mandatory: Iterable[str], quick: bool = False) -> Verdict:
    """The verdict on a run, quick or whole, of which all mandatory checks are named.

    A check that occurs twice must pass twice.
    """
    passed = {check.name for check in checks if check.status is Status.PASS}
    other = [check for check in checks if check.status is not Status.PASS]
    needed = tuple(mandatory)
    missing = [f"{check.name}: {check.status.value}. {check.detail}" for check in other if check.name in needed]
    missing += [f"{check.name}: FAIL. {check.detail}" for check in _failed(other) if check.name not in needed]
    seen = passed | {check.name for check in other}
    missing += [f"{name}: it did not run." for name in needed if name not in seen]
    void = [check.name for check in _failed(other) if check.is_control]
    if void:
        line = (
            f"VOID: a gate did not catch its control ({', '.join(void)}), so that what the gates say counts for nothing"
        )
        return Verdict(Exit.FAILED, line, tuple(missing))
    if failed := _failed(other):
        return Verdict(Exit.FAILED, f"NOT CLEARED: {_names(failed)} failed", tuple(missing))
    if quick:
        missing.append("This was a quick run, which does less and clears nothing: leave --quick out.")
    if missing or not needed:
        return Verdict(
            Exit.INCOMPLETE, f"NOT CLEARED: nothing failed, {len(missing)} things are missing", tuple(missing)
        )
    return Verdict(Exit.CLEARED, f"CLEARED: all {len(needed)} mandatory checks ran and passed")


def judge_self_test(checks: Sequence[Check]) -> Verdict:
    """The verdict on the controls alone; it clears nothing, so 0 means that all were caught."""
    void = _failed(checks)
    if void:
        return Verdict(Exit.FAILED, f"VOID: {_names(void)} failed", tuple(f"{c.name}: {c.detail}" for c in void))
    absent = [check for check in checks if check.status is not Status.PASS]
    if absent or not checks:
        told = tuple(f"{check.name}: {check.status.value}. {check.detail}" for check in absent)
        return Verdict(Exit.INCOMPLETE, "NOT SHOWN: some control could not be tried here", told)
    return Verdict(Exit.CLEARED, f"all {len(checks)} controls were caught")


def _failed(checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if check.status is Status.FAIL]


def _names(checks: Iterable[Check]) -> str:
    return ", ".join(check.name for check in checks)
