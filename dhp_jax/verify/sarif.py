"""Reports as SARIF 2.1.0, which code-scanning services and editors read."""

from __future__ import annotations

import inspect
from typing import Any

from dhp_jax.verify.report import Finding, KernelReport, Line
from dhp_jax.verify.rules import RULES
from dhp_jax.verify.verdict import Verdict

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(reports: list[KernelReport]) -> dict[str, Any]:
    """One run with all findings; what is unknown stands among the notifications of the tool."""
    unknown = [(report, problem) for report in reports for problem in report.problems]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "dhp_jax.verify", "rules": [_rule(rule) for rule in RULES]}},
                "invocations": [
                    {
                        "executionSuccessful": not any(report.verdict is Verdict.UNKNOWN for report in reports),
                        "toolExecutionNotifications": [
                            {
                                "level": "error",
                                "message": {"text": f"{report.kernel}: {problem.problem}. {problem.remedy}"},
                            }
                            for report, problem in unknown
                        ],
                    }
                ],
                "results": [_result(finding) for report in reports for finding in report.findings],
            }
        ],
    }


def _rule(rule: Any) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": rule.name,
        "fullDescription": {"text": inspect.cleandoc(type(rule).__doc__ or "")},
        "help": {"text": rule.remedy},
    }


def _result(finding: Finding) -> dict[str, Any]:
    steps = [
        {"location": _location(finding, step.address, step.line, f"{step.place} {step.reason}: {step.instruction}")}
        for step in finding.path
        if step.address >= 0
    ]
    return {
        "ruleId": finding.rule,
        "level": "error",
        "message": {"text": f"{finding.problem}: {finding.instruction}. {finding.remedy}"},
        "locations": [_location(finding, finding.address, finding.lines[0] if finding.lines else None, "")],
        "codeFlows": [{"threadFlows": [{"locations": steps}]}] if steps else [],
    }


def _location(finding: Finding, address: int, line: Line | None, message: str) -> dict[str, Any]:
    location: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": f"{finding.kernel}+{address:#06x}", "kind": "function"}]
    }
    if line is not None:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": line.file},
            "region": {"startLine": max(line.line, 1)},
        }
    if message:
        location["message"] = {"text": message}
    return location
