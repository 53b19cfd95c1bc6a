"""Loop 7: what all parts said, as JSON, Markdown and one HTML page."""

from __future__ import annotations

import datetime
import html
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import dhp_jax
from dhp_jax.validate import outcome, plan, plots
from dhp_jax.validate.outcome import Check
from dhp_jax.validate.store import Store
from dhp_jax.validate.verdict import Exit, Verdict

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1040px;margin:2em auto;padding:0 1em;color:#262626}
table{border-collapse:collapse;width:100%;margin:.5em 0 1.5em}td,th{border-bottom:1px solid #e5e5e5;padding:.35em .5em;
text-align:left;vertical-align:top}td:first-child{white-space:nowrap}
td:last-child,li{overflow-wrap:anywhere}.line{padding:.8em 1em;border-radius:6px;
font-size:1.15em;font-weight:600}.good{background:#dcfce7}.bad{background:#fee2e2}.open{background:#fef9c3}
.PASS{color:#15803d}.FAIL{color:#b91c1c}.UNKNOWN{color:#a16207}.SKIPPED{color:#737373}pre{background:#f5f5f5;padding:.7em;overflow-x:auto;font-size:12px}
summary{cursor:pointer;color:#525252}svg{max-width:100%;height:auto}
"""
_LOOK = {Exit.CLEARED: "good", Exit.FAILED: "bad", Exit.INCOMPLETE: "open"}


def write(store: Store, ended: Verdict, quick: bool) -> list[pathlib.Path]:
    """Writes report.json, report.md and report.html into the results folder."""
    data = collect(store, ended, quick)
    texts = {"report.json": json.dumps(data, indent=1) + "\n", "report.md": markdown(data), "report.html": page(data)}
    for name, text in texts.items():
        (store.folder / name).write_text(text, encoding="utf-8")
    return [store.folder / name for name in texts]


def collect(store: Store, ended: Verdict, quick: bool) -> dict[str, Any]:
    """Everything that the report says, as plain data."""
    loops = []
    for loop, name in plan.LOOPS.items():
        parts = [part for part in plan.PARTS if part.loop == loop]
        checks = [check for part in parts for check in store.find(part.name) or ()]
        seconds = sum(store.seconds(part.name) for part in parts)
        loops.append(
            {"loop": loop, "name": name, "seconds": seconds, "checks": [outcome.to_json(check) for check in checks]}
        )
    return {
        "dhp_jax": dhp_jax.__version__,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "identity": store.identity,
        "status": int(ended.status),
        "clearance": ended.line,
        "missing": list(ended.missing),
        "loops": loops,
    }


def markdown(data: dict[str, Any]) -> str:
    """The report for a terminal or a repository."""
    lines = [f"# dhp_jax {data['dhp_jax']} on this machine", "", f"**{data['clearance']}**", ""]
    lines += [f"- {line}" for line in data["missing"]]
    for loop in _with_checks(data):
        lines += [
            "",
            f"## {loop['loop']} {loop['name']} ({loop['seconds']:.0f} s)",
            "",
            "| check | status | |",
            "|---|---|---|",
        ]
        lines += [f"| {check.name} | {check.status.value} | {_cell(check.detail)} |" for check in _checks(loop)]
    told = f"Written {data['written']}{' by a quick run' if data['quick'] else ''}. Identity {data['identity'][:16]}."
    return "\n".join([*lines, "", f"{told} All figures are in report.json."]) + "\n"


def page(data: dict[str, Any]) -> str:
    """One HTML page that loads nothing."""
    look = _LOOK[Exit(data["status"])]
    title = f"dhp_jax {data['dhp_jax']} on this machine"
    parts = [f"<h1>{title}</h1>", f'<p class="line {look}">{html.escape(data["clearance"])}</p>']
    if data["missing"]:
        parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in data["missing"]) + "</ul>")
    for loop in _with_checks(data):
        parts.append(f"<h2>{loop['loop']} {loop['name']} <small>{loop['seconds']:.0f} s</small></h2>")
        parts.append("<table>" + "".join(map(_row, _checks(loop))) + "</table>")
        parts += [f"<p>{drawing}</p>" for check in _checks(loop) for drawing in plots.of(check)]
        parts += [_figures(check) for check in _checks(loop) if check.figures]
    parts.append(f"<p>Written {data['written']}; identity <code>{data['identity']}</code>.</p>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def _with_checks(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (loop for loop in data["loops"] if loop["checks"])


def _checks(loop: dict[str, Any]) -> Sequence[Check]:
    return [outcome.from_json(check) for check in loop["checks"]]


def _row(check: Check) -> str:
    kind = " (control)" if check.is_control else ""
    status = f'<b class="{check.status.value}">{check.status.value}</b>'
    return f"<tr><td>{html.escape(check.name)}{kind}</td><td>{status}</td><td>{html.escape(check.detail)}</td></tr>"


def _figures(check: Check) -> str:
    text = html.escape(json.dumps(check.figures, indent=1))
    return f"<details><summary>figures of {html.escape(check.name)}</summary><pre>{text}</pre></details>"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
