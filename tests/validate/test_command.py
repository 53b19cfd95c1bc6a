"""The command itself on the CPU: what it can it runs, the rest is SKIPPED, and the report says so."""

import html.parser
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

from absl.testing import parameterized

from dhp_jax.validate import outcome, plan, plots, report, timing, verdict
from dhp_jax.validate.outcome import Check, Status, control
from dhp_jax.validate.store import Store


def run(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-P", "-m", "dhp_jax.validate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


class CommandTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def told(self):
        loops = json.loads((self.folder / "report.json").read_text())["loops"]
        return {check["name"]: check["status"] for loop in loops for check in loop["checks"]}

    def test_a_cpu_is_never_cleared_and_never_passes_what_needs_a_gpu(self):
        first = run("--loop=1", f"--out={self.folder}", "--quick")
        assert first.returncode == 3, first.stderr
        assert self.told() == {"machine": "SKIPPED", "software": "PASS"}
        second = run("--loop=5", f"--out={self.folder}")
        assert second.returncode == 3, second.stderr
        assert "roofline" in self.told()
        assert self.told()["roofline"] == "SKIPPED"
        assert "\nNOT CLEARED" in second.stdout

    def test_controls_that_cannot_be_tried_are_no_success(self):
        done = run("--self-test", f"--out={self.folder}")
        assert done.returncode == 3, done.stderr
        assert "SKIPPED timing control" in done.stdout
        assert "NOT SHOWN" in done.stdout

    @parameterized.parameters("--loop=8", "--no_such_flag", "word")
    def test_a_wrong_command_line_is_told(self, argument):
        done = run(argument, f"--out={self.folder}")
        assert done.returncode not in (0, 3)
        assert done.stderr or done.stdout


class _Loads(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, name) for name, _ in attrs if name in ("src", "href")]


class ReportTest(parameterized.TestCase):
    def write(self, *checks):
        """The report on a run in which every part said these checks, or passed."""
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        store = Store(folder, "identity")
        given = {check.name: check for check in checks}
        for part in plan.PARTS:
            names = part.promises or (part.name,)
            store.keep(part.name, [given.get(name, Check(name, Status.PASS, "well")) for name in names], 1.0)
        found = [check for part in plan.PARTS for check in store.find(part.name)]
        return {
            path.suffix: path.read_text() for path in report.write(store, verdict.judge(found, plan.mandatory()), False)
        }

    def test_a_run_in_which_all_passed_is_cleared_in_every_form(self):
        for text in self.write().values():
            assert "CLEARED: all" in text
            assert "NOT CLEARED" not in text

    def test_what_withholds_clearance_stands_in_every_form(self):
        for text in self.write(Check("gate 1 float32", Status.UNKNOWN, "noise in <a> counter")).values():
            assert "NOT CLEARED" in text
            assert "gate 1 float32" in text
        assert "VOID" in self.write(control("timing control", False, "not seen"))[".md"]

    def test_the_page_is_whole_and_loads_nothing(self):
        measured = timing.judge("timing", {}, 5)
        page = self.write(Check("timing", Status.PASS, "a < b", measured.figures))[".html"]
        parser = _Loads()
        parser.feed(page)
        assert parser.found == []
        assert "a &lt; b" in page

    def test_figures_come_back(self):
        check = Check("a", Status.UNKNOWN, "why", {"n": [1, 2.5]}, is_control=True)
        assert outcome.from_json(json.loads(json.dumps(outcome.to_json(check)))) == check


class PlotTest(parameterized.TestCase):
    @parameterized.parameters(
        ("timing", {"calls": {"c": {"differences": {"zeros": {"t": -1.5}}}}}, "zeros"),
        ("benchmark", {"cases": [{"name": "B=1", "figures": {"dhp_jax": {"seconds": 1e-6}}}]}, "dhp_jax"),
        (
            "roofline",
            {
                "kernels": [{"name": "attention_fwd_sm80 D=64", "TFLOP/s": 300.0, "FLOP per byte": 900.0}],
                "peak TFLOP/s": 989.0,
                "bandwidth TB/s": 4.8,
            },
            "attention_fwd_sm80 D=64",
        ),
    )
    def test_a_check_with_figures_is_drawn(self, name, figures, text):
        (drawing,) = plots.of(Check(name, Status.PASS, "", figures))
        root = ElementTree.fromstring(drawing)
        assert text in [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]

    def test_a_check_without_figures_is_not(self):
        assert plots.of(Check("timing", Status.SKIPPED, "")) == plots.of(Check("roofline", Status.SKIPPED, "")) == []
