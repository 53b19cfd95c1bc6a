"""The command itself on the CPU: what it can it runs, the rest is SKIPPED, and the report says so."""

import html.parser
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import pytest
from absl.testing import parameterized

from dhp_jax.validate import _one, calls, ncu, outcome, plan, plots, report, roofline, timing, verdict
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
        for text in self.write(Check("gate 1 counters", Status.UNKNOWN, "noise in <a> counter")).values():
            assert "NOT CLEARED" in text
            assert "gate 1 counters" in text
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
        ("benchmark", {"cases": [{"name": "B=1", "group": "grid", "ratios": {"a": 1.5, "b": 1.25}}]}, "1.25"),
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


class ChildTest(parameterized.TestCase):
    """What ncu and the sanitizers run."""

    def test_a_call_runs_with_each_sort_of_secrets(self):
        call = calls.Call("float32", 8, operands=True, B=1, T=5, S=7, N=2, K=1)
        assert _one.main(["--calls", calls.to_text(call), "--secrets", "random,no keys,diagonal mask"]) == 0

    def test_an_unknown_sort_of_secrets_is_an_error(self):
        call = calls.Call("float32", 8, B=1, T=5, S=7, N=2, K=1)
        with pytest.raises(KeyError):
            _one.main(["--calls", calls.to_text(call), "--secrets", "no such sort"])


class RooflineTest(parameterized.TestCase):
    CALL = calls.Call("bfloat16", 128, B=2, T=4096, S=4096, N=16, K=16)

    def launch(self, kernel):
        metrics = {"gpu__time_duration.sum": 1e6, "dram__bytes_read.sum": 5e7, "dram__bytes_write.sum": 2e7}
        return ncu.Launch(kernel, metrics | {"tensor": 40.0, "issue": 60.0}, {})

    def test_a_forward_kernel_is_placed_below_the_roof(self):
        percent = {"tensor": "tensor", "issue": "issue"}
        told = roofline.described(self.CALL, self.launch("_ZN3dhp18attention_fwd_sm80INS"), percent)
        assert told["limit"] == "issue"
        assert told["TFLOP/s"] == pytest.approx(4 * 2 * 16 * 4096**2 * 128 / 1e-3 / 1e12)
        assert told["times the floor"] == pytest.approx(1e3 / max(told["floors us"].values()))
        assert roofline.conclude([told]).status is Status.PASS
        backward = roofline.described(self.CALL, self.launch("_ZN3dhp24attention_bwd_query_sm80INS"), percent)
        assert "TFLOP/s" not in backward
        assert backward["name"] == "attention_bwd_query_sm80 D=128"

    def test_nothing_profiled_is_unknown(self):
        assert roofline.conclude([]).status is Status.UNKNOWN

    def test_metrics_are_those_that_the_gpu_has(self):
        found = roofline.suffixed(frozenset({"dram__throughput", "sm__pipe_tensor_op_gmma_cycles_active"}))
        assert found == {
            "tensor": "sm__pipe_tensor_op_gmma_cycles_active.avg.pct_of_peak_sustained_active",
            "DRAM": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        }
