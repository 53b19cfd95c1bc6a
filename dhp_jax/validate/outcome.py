"""What a check can say, as plain data."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


class Status(enum.Enum):
    """The answer of one check.

    UNKNOWN: it looked, and what it saw does not bear a verdict. SKIPPED: it could not look. Neither is a pass.
    """

    PASS = "PASS"
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"
    SKIPPED = "SKIPPED"


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: such as "gate 3 cuda"; plan.py knows the mandatory ones by it.
        status: the answer.
        detail: why, in a sentence or two.
        figures: what was measured; JSON.
        is_control: whether it says that a gate caught its control. FAIL makes the run void.
    """

    name: str
    status: Status
    detail: str
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    is_control: bool = False


def control(name: str, caught: bool, detail: str, **figures: Any) -> Check:
    """The check that a control was caught."""
    return Check(name, Status.PASS if caught else Status.FAIL, detail, figures, is_control=True)


def to_json(check: Check) -> dict[str, Any]:
    """A check as JSON has it."""
    return {**dataclasses.asdict(check), "status": check.status.value}


def from_json(data: dict[str, Any]) -> Check:
    """The check that to_json wrote."""
    return Check(**{**data, "status": Status(data["status"])})
