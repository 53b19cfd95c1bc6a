"""Writes down what the static proof says of the kernels that ship.

``python docs/verified_kernels.py`` judges the kernels of the installed dhp_jax and
writes verified_kernels.json, the whole report, and verified_kernels.md, its table.
``python docs/verified_kernels.py report.json`` does so from a report that
``python -m dhp_jax.verify --json`` wrote. A report in which a kernel is not SAFE is
refused.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dhp_jax.verify import policy

DOCS = pathlib.Path(__file__).parent
REPORT = DOCS / "verified_kernels.json"
PAGE = DOCS / "verified_kernels.md"

_DIGITS = 16  # of a hash, on the page

Report = Mapping[str, Any]  # of one kernel, as dhp_jax.verify.report.to_json writes it

_HEAD = """\
# Verified kernels

What `python -m dhp_jax.verify` says of the CUDA kernels of this version: {count} of
{count} are SAFE, as ptxas {ptxas} compiled them. [Proof](verify.md) explains what
that means and what it rests on; [the whole report](verified_kernels.json) has the
full hashes, each branch with its line, and what the policy lets count as public.

A code hash is the SHA-256 of the machine code of one kernel, here its first {digits}
digits. It names the code that was judged: `python -m dhp_jax.verify` prints those of
your own build, and equal hashes are equal code. `DType` 0, 1 and 2 are float32,
bfloat16 and float16.

This page is made by `python docs/verified_kernels.py`; do not edit it.

| kernel | architecture | verdict | code hash | instructions | predicated branches |
|---|---|---|---|---|---|
"""


def main(arguments: Sequence[str]) -> None:
    """Writes both files, from a report that is named or from the installed kernels."""
    try:
        text = pathlib.Path(arguments[0]).read_text("utf-8") if arguments else _judged()
        reports = released(json.loads(text))
    except (OSError, ValueError) as error:
        raise SystemExit(f"verified_kernels.py: {error}") from None
    REPORT.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(reports), encoding="utf-8")


def released(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """A report as it is kept: in a fixed order, free of folders of the build machine.

    Raises:
        ValueError: it is empty, or a kernel in it is not SAFE.
    """
    unsafe = [
        f"{report['kernel']} {report['architecture']}"
        for report in reports
        if report["verdict"] != "SAFE"
    ]
    if unsafe or not reports:
        raise ValueError(
            f"{len(unsafe)} of {len(reports)} kernels in the report are not SAFE "
            f"{unsafe[:3]}; a release needs one in which all are. Mend what "
            "python -m dhp_jax.verify says of them; where the installed package has no "
            "CUDA kernels, name a report on a build that has them."
        )
    kept = [
        {
            **report,
            "branches": [_without_folder(branch) for branch in report["branches"]],
        }
        for report in reports
    ]
    return sorted(kept, key=lambda report: (name(report), report["architecture"]))


def page(reports: Sequence[Report]) -> str:
    """The page that shows a released report."""
    ptxas = ", ".join(sorted({report["ptxas"] for report in reports}))
    rows = "".join(_row(report) for report in reports)
    assumed = sorted(
        {assumption for report in reports for assumption in report["assumptions"]}
    )
    public = sorted({report["public"] for report in reports})
    return (
        _HEAD.format(count=len(reports), ptxas=ptxas, digits=_DIGITS)
        + rows
        + "\nAssumed, beside what [Security](security.md) assumes for all:\n\n"
        + "".join(f"- {assumption}.\n" for assumption in assumed or ["nothing"])
        + "\nPublic by policy (`dhp_jax/verify/policy.toml`); all that is read through "
        "a pointer is secret:\n\n" + "".join(f"- {reason}.\n" for reason in public)
    )


def name(report: Report) -> str:
    """A kernel with its template arguments, without namespaces and parameters."""
    demangled = report["kernel"]
    rest = demangled[demangled.index(policy.function_name(demangled)) :]
    depth = 0
    for position, letter in enumerate(rest):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            rest = rest[:position]
            break
    return rest.replace("dhp::", "").replace("> >", ">>")


def _row(report: Report) -> str:
    sorts = ", ".join(
        f"{count} {sort}" for sort, count in report["branch_counts"].items()
    )
    cells = (
        f"`{name(report)}`",
        report["architecture"],
        report["verdict"],
        f"`{report['code_hash'][:_DIGITS]}`",
        str(report["instructions"]),
        sorts or "none",
    )
    return f"| {' | '.join(cells)} |\n"


def _without_folder(branch: Mapping[str, Any]) -> dict[str, Any]:
    """A branch whose source file, if ours, is named from the repository's root."""
    if not branch["line"]:
        return dict(branch)
    file = pathlib.PurePosixPath(branch["line"]["file"])
    tails = [
        pathlib.PurePosixPath(*file.parts[start:]) for start in range(len(file.parts))
    ]
    ours = (
        tail
        for tail in tails
        if not tail.is_absolute() and (DOCS.parent / tail).is_file()
    )
    return {**branch, "line": {**branch["line"], "file": str(next(ours, file.name))}}


def _judged() -> str:
    """The report on the installed dhp_jax; -P: not on that in the folder."""
    command = [sys.executable, "-P", "-m", "dhp_jax.verify", "--no-cache", "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    main(sys.argv[1:])
