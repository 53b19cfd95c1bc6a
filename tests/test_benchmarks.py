"""The benchmarks: results have the form they say, figures in README are those of the results, the notebook runs."""

import contextlib
import dataclasses
import gc
import importlib.util
import io
import json
import os
import pathlib
import sys
import tempfile
import unittest.mock
import weakref
import xml.etree.ElementTree as ElementTree

import clock
import jax
import numpy as np
import plots
import provenance
import pytest
import readme
import results
import shapes
import timer
from absl.testing import parameterized
from peers import OURS, PEERS, chain

from dhp_jax.validate import benchmark, svg
from dhp_jax.validate.outcome import Status

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
RESULTS = sorted(
    path.relative_to(BENCHMARKS).as_posix()
    for path in [*BENCHMARKS.glob("history/*.json"), *BENCHMARKS.glob("results/*.json")]
    if "latency" not in path.name  # benchmarks/latency has a form of its own
)

_PROVENANCE = {"date": "2026-11-22", "commit": "unknown", "jax": "0", "dhp_jax": "0"}


def case(name="a", seconds=1e-3, **more):
    figures = {"dhp_jax": {"seconds": seconds, "spread_percent": 1.0}, "peer": {"seconds": 2e-3, "spread_percent": 2.0}}
    return results.case(name, "grid", 1e9, [figures], refusals={}, **more)


def told(*cases):
    return {"version": 1, "provenance": {"date": "2026-11-22"}, "untested": {}, "cases": list(cases)}


class ResultTest(parameterized.TestCase):
    @parameterized.parameters(*RESULTS)
    def test_results_that_are_kept_have_the_form(self, name):
        jsonschema = pytest.importorskip("jsonschema")
        schema = json.loads(results.SCHEMA.read_text(encoding="utf-8"))
        jsonschema.validate(results.load(BENCHMARKS / name), schema)

    def test_another_form_is_refused(self):
        jsonschema = pytest.importorskip("jsonschema")
        schema = json.loads(results.SCHEMA.read_text(encoding="utf-8"))
        broken = json.loads((BENCHMARKS / RESULTS[0]).read_text(encoding="utf-8"))
        broken["cases"][0]["figures"]["dhp_jax"]["seconds"] = -1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)

    def test_another_version_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "results.json")
            path.write_text('{"version": 0}')
            with pytest.raises(ValueError, match="reads 1"):
                results.load(path)

    def test_ratios_are_how_many_times_faster_ours_is(self):
        assert case()["ratios"] == {"peer": 2.0}
        assert results.tflops(case(), "dhp_jax") == pytest.approx(1.0)
        assert results.table([case()], "TFLOP/s").splitlines()[-1] == "| a | 1.0 (+-1.0 %) | 0.5 (+-2.0 %) | 2.00 |"

    def test_of_several_runs_the_middle_one_counts(self):
        runs = [
            {"dhp_jax": {"seconds": ours, "spread_percent": 1.0}, "peer": {"seconds": theirs, "spread_percent": 1.0}}
            for ours, theirs in ((4.0, 4.0), (1.0, 3.0), (2.0, 8.0))
        ]
        found = results.case("a", "grid", 1.0, runs)
        assert {name: figure["seconds"] for name, figure in found["figures"].items()} == {"dhp_jax": 2.0, "peer": 4.0}
        assert found["ratios"] == {"peer": 3.0}  # each of times that were taken in turn, not that of the two figures
        assert found["runs"] == 3

    def test_bursts_and_sustained_rates_are_told_with_their_clocks(self):
        figure = dataclasses.asdict(timer.Timing(2.0, 1.0, 1.0, 4.0, {"burst": 1980.0, "median": 1800.0}))
        rows = [results.case("a", "grid", 8e12, [{"dhp_jax": figure, "peer": {**figure, "megahertz": {}}}])]
        assert results.phases(rows, "TFLOP/s").splitlines()[2:] == [
            "| a | dhp_jax | 8.0 | 4.0 | 2.0 | 1980, 1800 |",
            "| a | peer | 8.0 | 4.0 | 2.0 | not read |",
        ]
        jsonschema = pytest.importorskip("jsonschema")
        jsonschema.validate(
            {**told(*({**row, "refusals": {}} for row in rows)), "provenance": _PROVENANCE},
            json.loads(results.SCHEMA.read_text(encoding="utf-8")),
        )

    def test_targets_below_the_floor_are_told(self):
        rows = [
            case(seconds=1e-3, target_seconds=t, floor_seconds=f) for t, f in ((2e-3, 1e-4), (5e-4, 1e-4), (1e-4, 2e-4))
        ]
        words = [line.split("|")[-2].strip() for line in results.targets(rows).splitlines()[2:]]
        assert words == ["met", "missed", "below the floor"]

    def test_a_report_without_a_peer_is_unknown(self):
        assert benchmark.judge(told(case())).status is Status.PASS
        alone = results.case("a", "grid", 1.0, [{"dhp_jax": {"seconds": 1.0, "spread_percent": 0.0}}], refusals={})
        assert benchmark.judge(told(alone)).status is Status.UNKNOWN
        assert benchmark.judge(told()).status is Status.UNKNOWN


class ShapeTest(parameterized.TestCase):
    def test_names_are_unique_and_quick_ones_exist(self):
        assert len(shapes.SHAPES) == 7 + 8 + 6 + 36 + 5 + 4 + 19
        assert set(shapes.QUICK) <= shapes.SHAPES.keys()

    def test_floors_are_those_of_the_physics(self):
        floors = {shape.name: 1e6 * shape.floor_seconds for shape in shapes.SHAPES.values() if shape.target_us}
        assert floors["float16 B=1 S=2048 N=32 D=64 full fwd"] == pytest.approx(36.2, abs=0.1)
        assert floors["float16 B=2 S=8192 N=16 D=128 full fwd"] == pytest.approx(1112, abs=1)


class TimerTest(parameterized.TestCase):
    def clock(self, *costs):
        """Programs that take a fixed time and one for each call, on a clock of their own."""
        now = [0.0]

        def build(fixed, each):
            def of(calls, mode):
                def run():
                    now[0] += (
                        fixed
                        + calls * (each if mode != timer.FLUSH else 0)
                        + (0 if mode == timer.WARM else 7.0 * calls)
                    )

                return run

            return of

        self.enter_context(unittest.mock.patch.object(timer.time, "perf_counter", side_effect=lambda: now[0]))
        return {f"p{index}": build(*cost) for index, cost in enumerate(costs)}

    @parameterized.parameters(False, True)
    def test_starting_and_flushing_are_taken_off(self, cold):
        (timings,), refusals = timer.compare(self.clock((100.0, 2.0), (0.0, 5.0)), 4, 5, cold=cold)
        assert {name: round(found.seconds, 9) for name, found in timings.items()} == {"p0": 2.0, "p1": 5.0}
        assert refusals == {}

    def test_each_run_has_its_rest_and_its_clocks(self):
        sleep = self.enter_context(unittest.mock.patch.object(timer.time, "sleep"))
        ticks = iter(range(1000))
        runs, _ = timer.compare(self.clock((0.0, 2.0)), 4, 20, runs=2, rest=1.5, clock=lambda: 1000.0 + next(ticks))
        assert [run["p0"].megahertz for run in runs] == [
            {"burst": 1000.5, "median": 1009.5, "sustained": 1016.0},
            {"burst": 1020.5, "median": 1029.5, "sustained": 1036.0},
        ]
        assert sleep.call_args_list == [unittest.mock.call(1.5)] * 2

    def test_burst_and_sustained_are_the_first_and_the_last_rounds(self):
        found = timer.Timing.of([1.0] * 3 + [2.0] * 17 + [5.0] * 10)
        assert (found.burst_seconds, found.seconds, found.sustained_seconds) == (1.0, 2.0, 5.0)
        assert found.megahertz == {}

    def test_nobody_always_comes_after_the_same_one(self):
        ran = []

        def build(name):
            return lambda calls, mode: lambda: ran.append(name)

        timer.compare({name: build(name) for name in "abc"}, 4, 20)
        rounds = ["".join(ran[i : i + 9 : 3]) for i in range(6, len(ran), 9)]
        assert len(rounds) == 20
        assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
        assert {pair for order in rounds for pair in (order[:2], order[1:])} == {"ab", "ac", "ba", "bc", "ca", "cb"}

    def test_what_a_turn_begins_with_is_not_timed(self):
        """A program that comes after another implementation's takes 20 ms more; a call takes 1."""
        now, last = [0.0], [""]

        def build(name):
            def run(calls):
                now[0] += 1e-3 * calls + 20e-3 * (last[0] != name)
                last[0] = name

            return lambda calls, mode: lambda: run(calls)

        with unittest.mock.patch("time.perf_counter", side_effect=lambda: now[0]):
            (found,), refusals = timer.compare({name: build(name) for name in "ab"}, 4, 3)
        assert refusals == {}
        assert [timing.seconds for timing in found.values()] == pytest.approx([1e-3, 1e-3])

    def test_without_a_driver_no_clock_is_read(self):
        if jax.default_backend() == "cpu":
            assert clock.reader() is None

    def test_short_calls_have_more_rounds(self):
        assert timer.count_rounds(7, 1e12) == 7
        assert 50 < timer.count_rounds(7, 1e8) < 200

    def test_what_takes_no_time_is_refused(self):
        timings, refusals = timer.compare(self.clock((1.0, 0.0)), 4, 5)
        assert timings == [{}]
        assert "too restless" in refusals["p0"]

    def test_a_peer_that_refuses_is_told(self):
        def build(calls, mode):
            raise ValueError("no such shape\nand more")

        assert timer.compare({"peer": build}, 4, 3) == ([{}], {"peer": "ValueError: no such shape"})

    @parameterized.parameters(
        (OURS, False, timer.WARM), (OURS, True, timer.COLD), (OURS, True, timer.FLUSH), ("jax.nn xla", True, timer.WARM)
    )
    def test_jax_programs_run(self, name, gradient, mode):
        shape = shapes.Shape("grid", 1, 16, 24, 4, 2, 8, gradient=gradient, dtype="float32")
        with unittest.mock.patch.object(chain, "FLUSH_BYTES", 4096), jax.default_device(jax.devices("cpu")[0]):
            PEERS[name](shape)(2, mode)()

    @parameterized.parameters(OURS, "jax.nn xla")
    def test_lengths_reach_the_call(self, name):
        shape = shapes.Shape("variants", 2, 16, 24, 4, 2, 8, lengths=True, dtype="float32")
        seen = []

        def attention(query, *arrays, key_value_seq_lengths, **options):
            seen.append(key_value_seq_lengths)
            return query

        with jax.default_device(jax.devices("cpu")[0]):
            chain.of_jax(shape, attention, 2, timer.WARM)()
            PEERS[name](shape)(2, timer.WARM)()
        assert [lengths.tolist() for lengths in seen] == [[24, 24]] * 2

    def test_what_a_captured_graph_reads_is_held(self):
        drawn = []

        def draw(*sizes, **options):
            array = np.zeros(sizes)
            drawn.append(weakref.ref(array))
            return array

        torch = unittest.mock.MagicMock(randn=draw, randn_like=lambda array: draw(*array.shape))
        shape = shapes.Shape("grid", 1, 2, 3, 1, 1, 4, dtype="bfloat16")
        with unittest.mock.patch.dict(sys.modules, {"torch": torch}):
            run = chain.of_torch(shape, lambda query, key, value: None, 2, timer.WARM)
            torch.reset_mock()
            gc.collect()
            assert len(drawn) == 4
            assert all(array() is not None for array in drawn)
            run()
        torch.cuda.synchronize.assert_called_once_with()

    def test_unrest_costs_a_case_and_a_failure_the_run(self):
        import attention

        def fails(shape):
            raise ValueError("no kernel")

        shape = shapes.SHAPES[shapes.QUICK[0]]
        with unittest.mock.patch.object(timer, "compare", return_value=([{}], {OURS: timer.RESTLESS})):
            assert attention.measure(shape, {OURS: lambda shape: None}, 3, False) is None
        with pytest.raises(RuntimeError, match="no kernel"):
            attention.measure(shape, {OURS: fails}, 3, False)

    def test_peers_that_are_not_installed_say_so(self):
        shape = shapes.SHAPES[shapes.QUICK[0]]
        for name, package in (
            ("FlashAttention-3", "flash_attn_interface"),
            ("FlashAttention-4", "flash_attn"),
            ("tokamax", "tokamax"),
        ):
            if importlib.util.find_spec(package) is None:
                with pytest.raises(ImportError):
                    PEERS[name](shape)


class DrawingTest(parameterized.TestCase):
    def test_drawings_are_svg_with_every_name(self):
        drawing = svg.chart(
            "a & b", "x", "y", [svg.Line("<ours>", [(1, 2), (4, 8)]), svg.Line("peer", [(2, 3)], dashed=True)]
        )
        root = ElementTree.fromstring(drawing)
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {"a & b", "<ours>", "peer", "x", "y"} <= set(texts)
        assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2

    def test_a_greater_value_is_higher_and_further_right(self):
        root = ElementTree.fromstring(svg.chart("", "", "", [svg.Line("", [(1, 1), (8, 64)])], log_x=True, log_y=True))
        low, high = root.iter("{http://www.w3.org/2000/svg}circle")
        assert float(high.get("cx")) > float(low.get("cx"))
        assert float(high.get("cy")) < float(low.get("cy"))

    def test_bars_are_as_long_as_their_values(self):
        root = ElementTree.fromstring(svg.bars("t", "us", [("dhp_jax", 5.0), ("peer", 10.0)]))
        _, ours, theirs = root.iter("{http://www.w3.org/2000/svg}rect")
        assert float(theirs.get("width")) == 2 * float(ours.get("width"))

    def test_a_sheet_has_its_drawings_side_by_side(self):
        root = ElementTree.fromstring(svg.sheet([svg.bars(name, "us", [(name, 1.0)]) for name in "abc"], 2))
        moves = [group.get("transform") for group in root.findall("{http://www.w3.org/2000/svg}g")]
        assert len(set(moves)) == 3
        assert moves[0] == "translate(0 0)"
        assert moves[1].endswith(" 0)")
        assert svg.sheet([], 2) == ""

    def test_constant_and_empty_data_are_drawn(self):
        ElementTree.fromstring(svg.chart("", "", "", [svg.Line("flat", [(1, 5), (2, 5)])]))
        assert svg.chart("", "", "", []) == svg.bars("", "", []) == ""
        assert plots.roofline([]) == ""


class ReadmeTest(parameterized.TestCase):
    def test_figures_are_those_of_the_newest_results(self):
        assert readme.main(["--check"]) == 0

    def test_a_changed_figure_is_seen(self):
        page = (readme.ROOT / "README.md").read_text("utf-8")
        newest = results.history()[-1]
        changed = page.replace("(+-1.7 %)", "(+-1.6 %)")
        assert changed != page == readme.placed(changed, readme.section(results.load(newest), newest))

    def test_lost_marks_are_an_error(self):
        with pytest.raises(ValueError, match="lacks the line"):
            readme.placed("no marks", "text")


class NotebookTest(parameterized.TestCase):
    CELLS = json.loads((BENCHMARKS / "attention.ipynb").read_text(encoding="utf-8"))["cells"]

    def test_it_runs_from_results(self):
        names = {"__name__": "notebook"}
        said = io.StringIO()
        with contextlib.chdir(BENCHMARKS), contextlib.redirect_stdout(said):
            for cell in self.CELLS:
                if cell["cell_type"] == "code":
                    exec("".join(cell["source"]), names)
        for drawing in (*filter(None, names["shown"]), names["roofline"], names["memory"], names["secrecy"]):
            ElementTree.fromstring(drawing)
        assert len(list(filter(None, names["shown"]))) >= 12
        assert "ours, longest over shortest" in said.getvalue()

    def test_it_keeps_no_output(self):
        assert all(cell["outputs"] == [] for cell in self.CELLS if cell["cell_type"] == "code")


class ProvenanceTest(parameterized.TestCase):
    def test_versions_are_there(self):
        found = provenance.versions()
        assert {"date", "commit", "dhp_jax", "jax", "jaxlib"} <= found.keys()
        assert provenance.commit(pathlib.Path(os.sep)) == "unknown"
