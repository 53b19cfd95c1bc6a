"""Writes the judged cases as JSON, and as a page to read."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence

from latency import coverage, judge
from latency.judge import Judged, Verdict

_OPERANDS = ("chain", "stream")
_GUARDS = ("chain guarded", "stream guarded")
_WORST_FIRST = (Verdict.DIFFERS, Verdict.UNRESOLVED, Verdict.WITHIN, Verdict.EQUAL)


def as_json(judged: Sequence[Judged], provenance: Mapping[str, object], loops: Mapping[str, object]) -> str:
    """Everything that was found, one case a line. The figures of a class are [minimum, mean], in cycles."""
    head = json.dumps({"provenance": provenance}, indent=1)[:-2]
    cases = ",\n".join(json.dumps(_case(each, loops[str(each.case["kernel"])])) for each in judged)
    return f'{head},\n "cases": [\n{cases}\n ]\n}}\n'


def _case(each: Judged, loop: object) -> dict[str, object]:
    return {
        **each.case,
        "loop": loop,
        "verdict": each.verdict.value,
        "spread": round(each.spread, 1),
        "allowed": round(each.allowed, 1),
        "classes": {name: [figures.minimum, round(figures.mean, 1)] for name, figures in each.classes.items()},
    }


def as_page(judged: Sequence[Judged], provenance: Mapping[str, object]) -> str:
    """The page: provenance, controls, differences, one row for each probe, and what is not timed."""
    controls = [each for each in judged if each.case["control"]]
    timed = [each for each in judged if not each.case["control"]]
    seen = [each for each in timed if each.verdict in (Verdict.DIFFERS, Verdict.UNRESOLVED)]
    sections = [
        _head(timed, provenance),
        "## Controls: each must be seen\n\n" + _listed(controls),
        "## Differences by operands\n\n" + _listed([each for each in seen if not each.case["guarded"]]),
        "## Differences by guards\n\n" + _guards([each for each in seen if each.case["guarded"]]),
        "## All probes\n\n" + rows(timed),
        "## Not timed\n\n" + "".join(f"- {name}: {reason}.\n" for name, reason in coverage.NOT_TIMED.items()),
    ]
    return "\n".join(sections)


def rows(judged: Sequence[Judged]) -> str:
    """One row for each probe: its opcode, the cycles of each form, and the worst verdict on operands and on guards."""
    by_probe: dict[str, dict[str, Judged]] = collections.defaultdict(dict)
    for each in judged:
        by_probe[str(each.case["probe"])][str(each.case["form"])] = each
    forms = (*_OPERANDS, *_GUARDS)
    lines = [f"| opcode | probe | {' | '.join(forms)} | operands | guard |", "|---" * (len(forms) + 4) + "|"]
    for probe, found in by_probe.items():
        cells = [_cell(found[form]) if form in found else "" for form in forms]
        verdicts = [worst([found[form] for form in group if form in found]) for group in (_OPERANDS, _GUARDS)]
        lines.append(f"| {opcode(next(iter(found.values())).case)} | {probe} | {' | '.join([*cells, *verdicts])} |")
    return "\n".join(lines) + "\n"


def worst(judged: Sequence[Judged]) -> str:
    """The worst verdict of several cases, empty for none."""
    found = {each.verdict for each in judged}
    return next((verdict.value for verdict in _WORST_FIRST if verdict in found), "")


def opcode(case: Mapping[str, object]) -> str:
    """The opcodes of a case, ", " between them, without the marks of a regular expression."""
    plain = re.sub(r" .*|\\(?!w)|[()?]", "", str(case["opcode"]))
    return plain.replace("\\w+", "*").replace("|", ", ")


def _cell(each: Judged) -> str:
    least, greatest = each.per_instruction()
    return f"{least:.3f}" if each.verdict in (Verdict.EQUAL, Verdict.WITHIN) else f"**{least:.3f} to {greatest:.3f}**"


def _listed(judged: Sequence[Judged]) -> str:
    return "".join(f"- {_described(each)}\n" for each in judged) or "None.\n"


def _described(each: Judged) -> str:
    """The case, how large its spread is, and its classes by the time they take."""
    groups: list[tuple[float, list[str]]] = []
    for name, figures in sorted(each.classes.items(), key=lambda item: item[1].mean):
        if not groups or figures.mean - groups[-1][0] > each.allowed:
            groups.append((figures.mean, []))
        groups[-1][1].append(name)
    times = [f"{mean / each.instructions:.3f}: {', '.join(names)}" for mean, names in groups]
    return (
        f"{opcode(each.case)} ({each.case['probe']}, {each.case['form']}): {each.verdict.value} by {each.spread:.0f} "
        f"cycles in {each.instructions} instructions. {'; '.join(times)}."
    )


def _guards(judged: Sequence[Judged]) -> str:
    """One row for each case: its cycles with the guard on, off, and on in some lanes."""
    lines = ["| opcode | probe | form | on | off | some lanes |", "|---|---|---|---|---|---|"]
    for each in judged:
        cells = []
        for group in (("on",), ("off",), ("mixed", "one")):
            means = [figures.mean for name, figures in each.classes.items() if name.split()[0] in group]
            cells.append(_range(each, means) if means else "")
        lines.append(f"| {opcode(each.case)} | {each.case['probe']} | {each.case['form']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(each: Judged, means: Sequence[float]) -> str:
    least, greatest = min(means) / each.instructions, max(means) / each.instructions
    same = max(means) - min(means) <= each.allowed
    return f"{least:.3f}" if same else f"{least:.3f} to {greatest:.3f}"


def _head(timed: Sequence[Judged], provenance: Mapping[str, object]) -> str:
    facts = "".join(f"| {name} | {value} |\n" for name, value in _flat(provenance))
    return f"""# Does the time of an instruction depend on its operands?

{_summary("operands", [each for each in timed if not each.case["guarded"]])}
{_summary("guards", [each for each in timed if each.case["guarded"]])}

| | |
|---|---|
{facts}
Made by `python benchmarks/latency/run.py`. Each case runs on one SM. In a chain one warp waits for each result before
the next instruction; in a stream sixteen warps (three warpgroups for HGMMA) have four independent chains each. Guarded
forms have a guard on, off or mixed by lane (for HGMMA: the scale-d predicate) in place of classes of operands. A figure
is the mean over the rounds, in cycles for each instruction of one warp, with the LOP3 that ties each step to the last.
"Equal" is equal to the cycle in all rounds that count; "within" is within {judge.RESOLUTION:g} cycles an instruction in
a chain, one cycle in {1 / judge.RESOLUTION:g} in a stream or beyond the SM. Between the clock reads of each kernel the
opcode stands exactly as often as its case says: that was checked in the machine code.
"""


def _summary(what: str, judged: Sequence[Judged]) -> str:
    counts = collections.Counter(each.verdict for each in judged)
    return f"{len(judged)} cases of {what}: {', '.join(f'{counts[v]} {v.value}' for v in reversed(_WORST_FIRST))}.  "


def _flat(facts: Mapping[str, object]) -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat.append((name, ", ".join(f"{key} {each}" for key, each in value.items())))
        else:
            flat.append((name, value))
    return flat
