"""The latency table is evidence: its judge sees one cycle in a thousand, its probes time what they say, and it covers
every opcode that the verifier admits secrets to."""

import hashlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from dhp_jax.validate import machine
from dhp_jax.verify import opcodes

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from latency import build, coverage, judge, sass, table  # noqa: E402
from latency.judge import Verdict  # noqa: E402

RESULTS = json.loads((BENCHMARKS / "results" / "2026-11-21-h200-latency.json").read_text())
CASES = {case["kernel"]: case for case in RESULTS["cases"]}

ROUNDS = judge.FEWEST_ROUNDS
CHAIN = {
    "probe": "ffma",
    "form": "chain",
    "opcode": "FFMA",
    "kernel": "ffma_chain",
    "in_code": 64,
    "trips": 16,
    "guarded": False,
    "guard_in_code": False,
    "control": False,
    "beyond_sm": False,
}
STREAM = {**CHAIN, "form": "stream", "kernel": "ffma_stream"}
CONTROL = {**CHAIN, "probe": "control_branch", "kernel": "control_branch_chain", "control": True}


def steady(cycles):
    return [cycles] * ROUNDS


def noisy(cycles, width, seed=0):
    draw = random.Random(seed)
    return [round(draw.gauss(cycles, width)) for _ in range(ROUNDS)]


class JudgeTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("nothing", 0, Verdict.EQUAL),
        ("one_cycle_in_1024_instructions", 1, Verdict.WITHIN),
        ("two_cycles_in_1024_instructions", 2, Verdict.DIFFERS),
        ("one_more_dependent_instruction_in_1024", 4, Verdict.DIFFERS),
    )
    def test_chain_that_is_longer_by(self, cycles, expected):
        figures = {"normal": steady(8192), "normal again": steady(8192), "subnormal": steady(8192 + cycles)}
        assert judge.judge(CHAIN, figures).verdict is expected

    def test_chain_that_is_shorter_in_its_best_round_only(self):
        figures = {"normal": steady(8192), "normal again": steady(8192), "zero": [8100, *steady(8192)[1:]]}
        assert judge.judge(CHAIN, figures).verdict is Verdict.DIFFERS

    @parameterized.named_parameters(("half_a_cycle", 0.0005, Verdict.WITHIN), ("two_cycles", 0.002, Verdict.DIFFERS))
    def test_stream_that_is_longer_in_a_thousand_by(self, part, expected):
        figures = {
            "normal": noisy(16000, 20, 1),
            "normal again": noisy(16000, 20, 2),
            "subnormal": noisy(16000 * (1 + part), 20, 3),
        }
        assert judge.judge(STREAM, figures).verdict is expected

    @parameterized.named_parameters(("noise", 8210, Verdict.UNRESOLVED), ("a_difference", 9000, Verdict.DIFFERS))
    def test_two_names_of_one_class_tell_apart(self, cycles, expected):
        figures = {"normal": steady(8192), "normal again": steady(8200), "subnormal": steady(cycles)}
        assert judge.judge(CHAIN, figures).verdict is expected

    def test_one_wild_round_in_a_stream_counts_for_nothing(self):
        figures = {"normal": steady(16000), "normal again": [10**6, *steady(16000)[1:]]}
        assert judge.judge(STREAM, figures).verdict is Verdict.EQUAL

    def test_control_in_which_nothing_is_seen_is_named(self):
        still = {"normal": steady(8192), "normal again": steady(8192)}
        seen = {**still, "zero": steady(9000)}
        assert judge.unseen_controls([judge.judge(CONTROL, still)]) == ["control_branch_chain"]
        assert not judge.unseen_controls([judge.judge(CONTROL, seen), judge.judge(CHAIN, still)])

    def test_too_few_rounds(self):
        with pytest.raises(ValueError, match="ffma_chain: 3 rounds of a class; a mean needs 200, give --rounds more"):
            judge.judge(CHAIN, {"normal": [1] * 3, "normal again": [1] * 3})

    def test_no_class_twice(self):
        with pytest.raises(ValueError, match="one must come twice"):
            judge.judge(CHAIN, {"normal": steady(1), "zero": steady(1)})


def listing(*loop, tail=()):
    """What cuobjdump prints of a kernel whose timed region is this loop."""
    lines = ["CS2R R2, SR_CLOCKLO ;", *loop, "@P0 BRA 0x10 ;", *tail, "CS2R R4, SR_CLOCKLO ;", "EXIT ;"]
    code = "\n".join(f"        /*{16 * i:04x}*/                   {line}    /* 0x0 */" for i, line in enumerate(lines))
    return f"\t\tFunction : ffma_chain\n{code}\n"


FFMA = "FFMA R9, R5, R9, R6 ;"
TIE = "LOP3.LUT R9, R8, R9, R7, 0xf8, !PT ;"
TWO = {**CHAIN, "in_code": 2}


class SassTest(parameterized.TestCase):
    def test_probe_that_times_what_it_says(self):
        region = sass.check(TWO, sass.parse(listing(FFMA, TIE, FFMA, TIE)))
        assert region.histogram() == {"FFMA": 2, "LOP3.LUT": 2, "@P BRA": 1}

    def test_guarded_probe(self):
        guarded = {**TWO, "guard_in_code": True}
        sass.check(guarded, sass.parse(listing(f"@P1 {FFMA}", TIE, f"@!P1 {FFMA}", TIE)))

    @parameterized.named_parameters(
        ("one_missing", (FFMA, TIE), "1 times in the timed loop, the case says 2"),
        ("one_too_many", (FFMA, FFMA, FFMA), "3 times"),
        ("another_modifier", (FFMA, "FFMA.FTZ R9, R5, R9, R6 ;"), "1 times"),
        ("a_guard", (FFMA, f"@P1 {FFMA}"), "1 times"),
        ("a_branch_inside", (FFMA, "@P1 BRA 0x30 ;", FFMA), "more control flow"),
        ("a_call_inside", (FFMA, "CALL.REL.NOINC 0x4000 ;", FFMA), "more control flow"),
        ("a_loop_inside", (FFMA, "@P1 BRA 0x10 ;", FFMA), "2 loops"),
        ("a_third_clock", (FFMA, FFMA, "CS2R R6, SR_CLOCKLO ;"), "3 clock reads"),
    )
    def test_void_probe(self, loop, said):
        with pytest.raises(sass.VoidProbeError, match=f"ffma_chain: .*{said}"):
            sass.check(TWO, sass.parse(listing(*loop)))

    def test_opcode_outside_the_loop_does_not_count(self):
        with pytest.raises(sass.VoidProbeError, match="1 times"):
            sass.check(TWO, sass.parse(listing(FFMA, tail=(FFMA,))))

    def test_wait_for_the_copy_engine_is_no_loop(self):
        wait = ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R12 ;", "@!P0 BRA 0x30 ;")
        sass.check(TWO, sass.parse(listing(FFMA, FFMA, *wait)))

    def test_missing_kernel(self):
        with pytest.raises(sass.VoidProbeError, match="no such kernel in the binary; build it again"):
            sass.check(CHAIN, {})


class MissingToolTest(parameterized.TestCase):
    def test_no_driver(self):
        with (
            mock.patch.dict("os.environ", PATH=""),
            pytest.raises(RuntimeError, match=r"nvidia-smi gives no answer .* Run where an NVIDIA driver is installed"),
        ):
            machine.facts()

    def test_no_disassembler(self):
        with (
            mock.patch("shutil.which", return_value=None),
            pytest.raises(FileNotFoundError, match=r"cuobjdump was not found .* pip install nvidia-cuda-cuobjdump"),
        ):
            sass.cuobjdump()

    def test_no_program(self):
        with pytest.raises(FileNotFoundError, match=r"/gone/latency was not found; .* run.py --build-only"):
            build.cases(pathlib.Path("/gone/latency"))


class RunTest(parameterized.TestCase):
    """The whole way from recorded cycles to the table, without GPU and compiler."""

    @parameterized.named_parameters(
        ("control_seen", 9000, ROUNDS, 0, "controls not seen: none"),
        ("control_not_seen", 8192, ROUNDS, 1, "controls not seen: control_branch_chain"),
        ("too_few_rounds", 9000, 3, 2, "give --rounds more"),
    )
    def test_exit_status_when(self, control_cycles, rounds, status, said):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            record(folder, control_cycles, rounds)
            command = [sys.executable, BENCHMARKS / "latency" / "run.py", "--program", folder / "latency"]
            command += ["--judge", folder, "--output", folder / "out", "--name", "table"]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done
            if status == 0:
                written = json.loads((folder / "out" / "table.json").read_text())
                assert [case["verdict"] for case in written["cases"]] == ["equal", "differs"]
                assert "a GPU" in (folder / "out" / "table.md").read_text()


def record(folder, control_cycles, rounds):
    """What a run of two cases leaves behind: a program that was checked, its cycles, and the machine's record."""
    (folder / "latency").write_bytes(b"program")
    loops = {"ffma_chain": {"FFMA": 64}, "control_branch_chain": {"FFMA": 64}}
    manifest = {"sha256": hashlib.sha256(b"program").hexdigest(), "loops": loops}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "machine.json").write_text(json.dumps({"name": "a GPU"}))
    quiet = {"normal": [8192] * rounds, "normal again": [8192] * rounds}
    lines = [{**CHAIN, "cycles": quiet}, {**CONTROL, "cycles": {**quiet, "zero": [control_cycles] * rounds}}]
    (folder / "raw.jsonl").write_text("\n".join(map(json.dumps, lines)))


class PageTest(absltest.TestCase):
    def test_difference_is_in_the_row_and_in_the_list(self):
        figures = {"normal": steady(8192), "normal again": steady(8192), "subnormal": steady(16384)}
        page = table.as_page([judge.judge(CHAIN, figures)], {"name": "a GPU"})
        assert "| FFMA | ffma | **8.000 to 16.000** |  |  |  | differs |  |" in page
        assert "differs by 8192 cycles in 1024 instructions. 8.000: normal, normal again; 16.000: subnormal." in page
        assert "1 cases of operands: 0 equal, 0 within, 0 unresolved, 1 differs" in page


class PublishedTableTest(parameterized.TestCase):
    def test_it_says_where_and_when_and_by_what(self):
        provenance = RESULTS["provenance"]
        for fact in ("date", "name", "driver_version", "clocks.sm", "nvcc", "commit", "sources_sha256", "rounds"):
            assert provenance[fact]
        assert "H200" in provenance["name"]

    def test_every_control_was_seen(self):
        controls = [case for case in CASES.values() if case["control"]]
        assert len(controls) >= 5
        assert all(case["verdict"] == "differs" for case in controls)

    def test_every_opcode_that_admits_secrets_is_timed_or_says_why_not(self):
        timed = {name for case in CASES.values() for name in probed(case)}
        missing = admitted() - timed - set(coverage.NOT_TIMED)
        assert not missing, f"teach benchmarks/latency a probe of {sorted(missing)}, or coverage.py why there is none"

    def test_nothing_timed_is_excused(self):
        assert not {name for case in CASES.values() for name in probed(case)} & set(coverage.NOT_TIMED)

    def test_no_latency_of_an_admitted_opcode_depends_on_its_operands(self):
        for case in plain_cases():
            if case["form"] == "chain":
                assert case["verdict"] in ("equal", "within"), case["kernel"]

    def test_no_throughput_of_an_admitted_opcode_was_seen_to_depend_on_its_operands(self):
        for case in plain_cases():
            assert case["verdict"] != "differs", case["kernel"]

    def test_what_may_have_a_secret_guard_was_timed_under_guards(self):
        for name in sorted(admitting_guards() - coverage.NOT_TIMED.keys()):
            forms = {case["form"] for case in CASES.values() if case["guarded"] and probed(case) == {name}}
            assert forms == {"chain guarded", "stream guarded"}, name

    def test_no_guard_that_may_be_secret_was_seen_to_change_a_time(self):
        """A probe that mixes opcodes, or has modifiers that the table does not admit a guard for, says nothing here."""
        for case in CASES.values():
            if case["guarded"] and admits_guard(case):
                assert case["verdict"] in ("equal", "within"), case["kernel"]

    def test_the_guard_of_ffma_was_seen_to_change_its_throughput(self):
        """On this rests the rule that a secret may not guard arithmetic in general."""
        assert CASES["ffma_stream_guarded"]["verdict"] == "differs"
        assert "FFMA" not in admitting_guards()

    def test_what_it_says_follows_from_its_figures(self):
        for case in CASES.values():
            means = [mean for _, mean in case["classes"].values()]
            if case["verdict"] in ("equal", "within"):
                assert max(means) - min(means) <= case["allowed"] + 0.2, case["kernel"]
            elif case["verdict"] == "differs":
                assert case["spread"] > case["allowed"], case["kernel"]


def admitted():
    """The opcodes of which some form may touch a secret."""
    return {
        name
        for name, lines in opcodes.TABLE.items()
        if any(line.admits is not opcodes.Admits.NOTHING for line in lines)
    }


def admitting_guards():
    """The opcodes of which some form may have a secret guard."""
    everything = opcodes.Admits.EVERYTHING
    return {name for name, lines in opcodes.TABLE.items() if any(line.admits is everything for line in lines)}


def admits_guard(case):
    """Whether the table lets a secret guard what a case times: all its opcodes, with the modifiers that they have."""
    for name in table.opcode(case).split(", "):
        opcode, *modifiers = name.replace("*", "GT").split(".")
        lines = [line for line in opcodes.TABLE.get(opcode, ()) if all(map(line.modifiers.fullmatch, modifiers))]
        if not lines or lines[0].admits is not opcodes.Admits.EVERYTHING:
            return False
    return True


def plain_cases():
    """The cases of admitted opcodes with classes of operands."""
    return [case for case in CASES.values() if not (case["guarded"] or case["control"]) and probed(case) & admitted()]


def probed(case):
    """The opcodes, without modifiers, that a case is about."""
    return {name.split(".")[0] for name in table.opcode(case).split(", ")}


if __name__ == "__main__":
    absltest.main()
