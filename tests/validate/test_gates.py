"""Gates 2 and 3, the loops before them, and the tools: each passes what is right and catches its control."""

import functools
import json
import pathlib
import tempfile
import xml.etree.ElementTree as ElementTree
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import nvcc
import pytest
from absl.testing import parameterized

from dhp_jax import ffi
from dhp_jax.validate import _controls, build, calls, conformance, memory, proof, repeat, sanitize, sorts, tolerance
from dhp_jax.validate.calls import Call
from dhp_jax.validate.outcome import Status
from dhp_jax.validate.plan import Context
from dhp_jax.verify import Policies, Verdict, cubin
from dhp_jax.verify.__main__ import installed_library
from dhp_jax.verify.report import KernelReport


@functools.cache
def control_reports():
    if not ffi.native().CUDA_ARCHITECTURES and _controls.objection():
        pytest.skip("built without CUDA")
    return proof.reports(_controls.library(), Policies(), fresh=True)


ROOT = pathlib.Path(__file__).parents[2]


def report(verdict=Verdict.SAFE, **changes):
    fields = {"kernel": "f(int)", "symbol": "_Z1fi", "architecture": "sm_90a", "verdict": verdict, "code_hash": "ab"}
    return KernelReport(**{**fields, "registers": 40, "ptxas": "13.0.88", **changes})


class CallTest(parameterized.TestCase):
    @parameterized.parameters("float32", "bfloat16", "float16")
    def test_all_secrets_of_a_call_have_one_shape_and_differ(self, dtype):
        call = Call(dtype, 24, operands=True, T=9, S=13)
        made = {secret: call.arrays(secret) for secret in call.secrets()}
        described = {secret: {n: (a.shape, a.dtype) for n, a in arrays.items()} for secret, arrays in made.items()}
        assert all(each == described["random"] for each in described.values())
        bits = {secret: b"".join(a.tobytes() for a in arrays.values()) for secret, arrays in made.items()}
        assert len(set(bits.values())) == len(bits) >= 16

    def test_subnormals_and_values_that_are_not_finite_are_there(self):
        for dtype in ("float32", "bfloat16", "float16"):
            call = Call(dtype, 8, T=3, S=5)
            query = call.arrays("subnormal")["query"]
            tiny = float(jnp.finfo(dtype).tiny)
            sizes = np.abs(query.astype(np.float64))
            assert (sizes < tiny).all()
            assert (sizes > 0).mean() > 0.9
            assert not np.isfinite(call.arrays("not finite")["key"].astype(np.float32)).all()

    def test_scores_rise_and_fall(self):
        for secret, sign in (("rising scores", 1), ("falling scores", -1)):
            arrays = Call("float32", 16, T=4, S=40).arrays(secret)
            query = arrays["query"].reshape(2, 4, 2, 2, 16)
            scores = sign * np.einsum("btkgd,bskd->btkgs", query, arrays["key"])
            assert (scores[..., -10:].min(-1) > scores[..., :10].max(-1)).all()

    def test_sorts_that_are_held_to_the_bound_switch_as_many_bits_as_random_ones(self):
        call = Call("float16", 64, operands=True, T=64, S=64)

        def toggled(secret, name):
            bits = np.unpackbits(call.arrays(secret)[name].view(np.uint8)).reshape(-1, 16).astype(int)
            return np.abs(np.diff(bits, axis=0)).mean()

        for secret in set(call.secrets()) - sorts.LESS_ACTIVE:
            for name in ("query", "key", "value", "d_out"):
                assert toggled(secret, name) > 0.95 * toggled("random", name), (secret, name)
        assert toggled("zeros", "key") == toggled("ones", "key") == 0
        assert set(call.secrets()) > sorts.LESS_ACTIVE

    def test_lengths_reach_from_none_to_all(self):
        call = Call("float32", 8, operands=True)
        lengths = {
            int(call.arrays(s)["key_value_seq_lengths"][0]) for s in ("no keys", "one key", "half the keys", "all keys")
        }
        assert lengths == {0, 1, call.S // 2, call.S}

    @parameterized.parameters(
        (Call("float32", 8, operands=True, T=6, S=7), 3 + 3 + 2),
        (Call("bfloat16", 8, lengths=True, T=6, S=7), 3 + 3),
        (Call("float16", 8, T=6, S=7, N=2, K=1), 5),
        (Call("float16", 8, operands=True, T=6, S=0), 3 + 3 + 2),
        (Call("float32", 8, operands=True, B=6, T=6, S=7), 1 + 1 + 1),
        (Call("bfloat16", 8, B=3, T=6, S=7), 2),
    )
    def test_mixtures_have_every_sort_and_each_place_is_pure(self, call, count):
        found = [mixture.split("+") for mixture in call.mixtures()]
        assert {name for names in found for name in names} == set(call.secrets()) - {"random"}
        assert len(found) == count
        random = call.arrays("random")
        of_bias = set()
        for names in found:
            arrays, pure = call.arrays("+".join(names)), [call.arrays(name) for name in names]
            assert {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in random.items()}
            assert {n: a.dtype for n, a in arrays.items()} == {n: a.dtype for n, a in random.items()}
            if set(names) <= set(sorts.OF_VALUES):
                for place, own in enumerate(pure):
                    b, k = divmod(place, call.K)
                    heads = slice(k * call.N // call.K, (k + 1) * call.N // call.K)
                    for part, at in (("query", heads), ("d_out", heads), ("key", k), ("value", k)):
                        assert arrays[part][b, :, at].tobytes() == own[part][b, :, at].tobytes()
                changed = {"mask", "query_seq_lengths", "key_value_seq_lengths"}
                for n in range(call.N if call.operands else 0):
                    heads = (own["bias"][0, n].tobytes() for own in pure)
                    of_bias |= {
                        name for name, head in zip(names, heads, strict=True) if head == arrays["bias"][0, n].tobytes()
                    }
            else:
                parts = (
                    ("mask",) if set(names) <= set(sorts.OF_MASKS) else ("query_seq_lengths", "key_value_seq_lengths")
                )
                for part in parts:
                    assert arrays[part].tobytes() == np.stack([own[part][b] for b, own in enumerate(pure)]).tobytes()
                changed = set(random) - set(parts)
            for part in changed & set(random):
                np.testing.assert_array_equal(arrays[part], random[part])
        assert of_bias >= ({"reversed", "zeros", "ones"} if call.operands else set())

    def test_bias_has_each_sort_of_a_mixture_in_a_head(self):
        call = Call("float32", 8, operands=True, T=6, S=7)
        bias = call.arrays("reversed+zeros+ones+subnormal")["bias"][0]
        assert (bias[1] == 0).all()
        assert (bias[2] == 1).all()
        np.testing.assert_array_equal(bias[0], call.arrays("reversed")["bias"][0, 0])

    def test_a_call_goes_to_another_process_and_back(self):
        call = Call("float16", 72, is_causal=True, T=5)
        assert calls.from_text(calls.to_text(call)) == call


class ProofTest(parameterized.TestCase):
    @parameterized.parameters(
        ([Verdict.SAFE], Status.PASS),
        ([Verdict.SAFE, Verdict.LEAK, Verdict.UNKNOWN], Status.FAIL),
        ([Verdict.SAFE, Verdict.UNKNOWN], Status.UNKNOWN),
        ([], Status.UNKNOWN),
    )
    def test_only_safe_passes(self, verdicts, status):
        assert proof.judge([report(verdict) for verdict in verdicts], "hash").status is status

    def test_controls_are_reported_by_their_rules(self):
        found = control_reports()
        assert proof.judge_controls(found).status is Status.PASS, proof.judge_controls(found).detail
        assert {each.architecture for each in found} == {"sm_80", "sm_90a"}

    def test_a_control_that_is_called_safe_voids(self):
        found = proof.judge_controls([report(kernel="void dhp::control_leak(float const*)")])
        assert (found.status, found.is_control) == (Status.FAIL, True)
        assert any("control_leak sm_90a: SAFE" in text for text in found.figures["missed"])
        assert "control_delay" in found.figures["missed"]

    def test_the_shipped_library_has_no_control_and_no_clock(self):
        """The verdict on what ships leaves the controls out by name: they lie in another file."""
        assert installed_library().name.startswith("libdhp_kernels.")
        assert b"control_leak" not in installed_library().read_bytes()

    def test_a_library_without_gpu_code_is_skipped(self):
        if ffi.native().CUDA_ARCHITECTURES:
            pytest.skip("built with CUDA")
        (check,) = proof.kernels(Context(pathlib.Path()))
        assert check.status is Status.SKIPPED

    def test_hashes_are_those_of_the_analyser(self):
        expected = {(each.architecture, each.symbol): each.code_hash for each in control_reports()}
        assert proof.code_hashes(_controls.library()) == expected


class BuildTest(parameterized.TestCase):
    def test_a_spill_fails(self):
        assert build.judge_resources([report()]).status is Status.PASS
        assert build.judge_resources([report(), report(spills=2)]).status is Status.FAIL
        assert build.judge_resources([report(stack_bytes=8)]).status is Status.FAIL

    def test_what_was_not_read_is_unknown(self):
        assert build.judge_resources([]).status is Status.UNKNOWN
        assert build.judge_resources([report(code_hash="")]).status is Status.UNKNOWN

    def test_the_release_is_told_from_another_build(self):
        release = {("sm_90a", "f"): "ab", ("sm_80", "f"): "cd"}
        assert build.judge_manifest(dict(release), release).status is Status.PASS
        for other in ({**release, ("sm_80", "f"): "ef"}, {("sm_80", "f"): "cd"}, {**release, ("sm_80", "g"): "ab"}):
            found = build.judge_manifest(other, release)
            assert found.status is Status.UNKNOWN
            assert len(found.figures["differs"]) == 1
        assert build.judge_manifest(release, None).status is Status.UNKNOWN

    def test_the_manifest_is_that_of_the_documents(self):
        entries = json.loads((ROOT / "docs" / "verified_kernels.json").read_text(encoding="utf-8"))
        assert build.released() == {(e["architecture"], e["symbol"]): e["code_hash"] for e in entries}
        # Gate 1 tells dtypes apart by the number in a symbol.
        assert all(sum(f"DTypeE{number}E" in entry["symbol"] for number in range(3)) == 1 for entry in entries)


class ConformanceTest(parameterized.TestCase):
    FEATURES = (conformance.Feature("everything", T=9, S=11, N=2, K=1, D=8, operands=("bias", "mask")),)

    def test_our_results_are_close(self):
        assert conformance.run("c", self.FEATURES, on_gpu=False).status is Status.PASS

    @parameterized.parameters("out", "lse", "query", "key", "value", "bias")
    def test_one_wrong_result_is_seen(self, name):
        ours = conformance._ours

        def wrong(*arguments):
            results = ours(*arguments)
            return results | {name: results[name] * 1.05}

        with mock.patch.object(conformance, "_ours", wrong):
            found = conformance.run("c", self.FEATURES, on_gpu=False)
        assert found.status is Status.FAIL
        assert f"everything bfloat16 {name}" in found.detail

    def test_nan_is_seen(self):
        with mock.patch.object(
            conformance, "_ours", lambda *a, ours=conformance._ours: ours(*a) | {"out": a[0]["query"] * np.nan}
        ):
            assert conformance.run("c", self.FEATURES, on_gpu=False).status is Status.FAIL

    def test_no_call_is_unknown(self):
        assert conformance.run("c", (), on_gpu=False).status is Status.UNKNOWN

    def test_every_feature_has_inputs(self):
        for feature in conformance.FEATURES:
            assert {"query", *feature.operands} <= feature.arrays("float16").keys()

    def test_the_excess_is_beyond_rounding(self):
        expected = np.array([1.0, np.inf, 2.0])
        assert tolerance.excess(np.array([1.0, 7.0, 2.5], np.float32), expected) == pytest.approx(0.5, rel=1e-6)
        assert tolerance.excess(expected.astype(np.float16), expected) == 0


class RepeatTest(parameterized.TestCase):
    CALL = Call("bfloat16", 8, operands=True, B=3, T=9, S=11, N=2, K=1)

    def test_our_calls_repeat_everywhere(self):
        found = repeat.judge("gate 3 cpu", "cpu", [self.CALL], 5)
        assert found.status is Status.PASS, found.detail

    def test_other_bits_are_seen(self):
        results = iter(np.float32([1, 1, np.nextafter(np.float32(1), np.float32(2))]))
        assert not repeat.repeats(lambda: [jnp.float32(next(results))], [jnp.float32(1)], 3)
        assert repeat.repeats(lambda: [jnp.float32(np.nan)], [jnp.float32(np.nan)], 3)

    def test_signed_zeros_are_other_bits(self):
        assert not repeat.repeats(lambda: [jnp.float32(-0.0)], [jnp.float32(0.0)], 1)

    def test_distinct_results_are_counted(self):
        results = iter([1.0, 2.0, 1.0])
        assert repeat.distinct(lambda: np.float32(next(results)), 3) == 2
        assert repeat.distinct(lambda: np.float32(1), 3) == 1

    def test_what_depends_on_the_batch_is_seen(self):
        arrays = self.CALL.arrays("random")

        def program(arrays):
            return {"out": jnp.asarray(arrays["query"]) + arrays["query"].shape[0]}

        def by_position(arrays):
            batch = arrays["query"].shape[0]
            return {"out": jnp.asarray(arrays["query"]) + (jnp.arange(batch) == 1)[:, None, None, None]}

        assert [where for where in repeat.moved(program, arrays, program(arrays))] == ["alone in its batch: out"]
        assert list(repeat.moved(by_position, arrays, by_position(arrays))) == ["other batch position: out"]

    def test_a_process_with_other_bits_is_seen(self):
        text = calls.to_text(self.CALL)
        with jax.default_device(jax.devices("cpu")[0]):
            true = repeat.digest(self.CALL.program()(self.CALL.arrays("random")))
        assert repeat._other_processes("cpu", {text: true}) == []
        assert repeat._other_processes("cpu", {text: "another"}) == [text]

    def test_a_process_that_fails_is_seen(self):
        assert repeat._other_processes("cpu", {"no call": "hash"}) == ["no call"]


class SanitizerTest(parameterized.TestCase):
    CLEAN = "the suite begins\n20 calls, all finite\n========= ERROR SUMMARY: 0 errors\n"

    @parameterized.parameters(
        (0, CLEAN, Status.PASS),
        (86, CLEAN, Status.FAIL),
        (1, CLEAN, Status.UNKNOWN),
        (None, CLEAN, Status.UNKNOWN),
        (0, "", Status.UNKNOWN),
        (0, CLEAN.replace("0 errors", "3 errors"), Status.UNKNOWN),
        (0, "========= ERROR SUMMARY: 0 errors", Status.UNKNOWN),
    )
    def test_only_a_clean_whole_run_passes(self, status, text, expected):
        assert sanitize.judge("memcheck", status, text).status is expected

    def test_without_the_tool_all_are_skipped(self):
        with mock.patch.object(sanitize.shutil, "which", return_value=None), mock.patch.object(sanitize, "_PLACES", ()):
            found = sanitize.run(Context(pathlib.Path()))
        assert [(check.name, check.status) for check in found] == [(name, Status.SKIPPED) for name in sanitize.TOOLS]

    @parameterized.parameters("exit 139", "echo the suite begins; kill -SEGV $$")
    def test_a_tool_that_dies_is_tried_again(self, death):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "tool")
            program.write_text(
                f'#!/bin/sh\nif [ -e {folder}/$2 ]; then printf "{self.CLEAN}"; else touch {folder}/$2; {death}; fi\n'
            )
            program.chmod(0o755)
            with mock.patch.object(sanitize.shutil, "which", return_value=str(program)):
                found = sanitize.run(Context(pathlib.Path(folder)))
        assert {check.status for check in found} == {Status.PASS}

    def test_initcheck_alone_leaves_something_out(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "tool")
            program.write_text(f'#!/bin/sh\necho "$@" > {folder}/$2; printf "{self.CLEAN}"\n')
            program.chmod(0o755)
            with mock.patch.object(sanitize.shutil, "which", return_value=str(program)):
                sanitize.run(Context(pathlib.Path(folder)))
            asked = {name: pathlib.Path(folder, name).read_text() for name in sanitize.TOOLS}
        assert [name for name, options in asked.items() if "--suppressions" in options] == ["initcheck"]
        assert f"--suppressions {sanitize.SUPPRESSIONS['initcheck']} " in asked["initcheck"]
        reads = {name: options.split()[-2:] for name, options in asked.items()}
        assert reads.pop("initcheck") == ["--suite", "but-outputs"]
        assert set(map(tuple, reads.values())) == {("--suite", "all")}

    def test_what_is_left_out_is_a_read_of_one_kernel(self):
        records = ElementTree.parse(sanitize.SUPPRESSIONS["initcheck"]).getroot().findall("record")
        assert records
        for record in records:
            names = [*record.findall("where/func"), *record.findall("deviceStack/frame/func")]
            assert record.findtext("kind") == "Initcheck"
            assert "attention_bwd_delta" in names[-1].text
            assert "read of size 16" in record.findtext("what/text")


class MemoryTest(parameterized.TestCase):
    def test_steady_growth_is_seen_and_a_single_step_is_not(self):
        held = {"host": 0}
        sizes = iter([0, 9, 0, 0, 0, 0])

        def step():
            held["host"] += next(sizes) << 20

        def leak():
            held["host"] += 2 << 20

        assert memory.judge(memory.grown(step, lambda: dict(held), 6), "cpu").status is Status.PASS
        assert memory.judge(memory.grown(leak, lambda: dict(held), 6), "cpu").status is Status.FAIL

    def test_the_host_tells_its_memory(self):
        before = memory.resident()
        kept = np.ones(256 << 20, np.uint8)  # more than what others of this process give back meanwhile
        assert memory.resident() - before > kept.size // 2


class ControlLibraryTest(parameterized.TestCase):
    def test_it_is_built_with_the_kernels(self):
        if ffi.native().CUDA_ARCHITECTURES:
            assert _controls.objection() == ""

    def test_where_it_is_missing_the_way_out_is_told(self):
        with mock.patch.object(_controls, "LIBRARY", "libdhp_gone"):
            assert "DHP_CUDA=1" in _controls.objection()

    def _compiled(self, name):
        """The machine code of one file of the controls, from this source."""
        folder = ROOT / "cuda" / "controls"
        sources = [folder / name, *sorted({*folder.glob("*.h"), *folder.glob("*.cuh")})]
        flags = ["-gencode=arch=compute_90a,code=sm_90a", "-cubin", "-std=c++20", "-O3", f"-I{ROOT / 'cuda'}"]
        return nvcc.compiled(f"{name.removesuffix('.cu')}.sm_90a.cubin", sources, flags)

    def test_it_compiles(self):
        found = proof.reports(self._compiled("controls.cu"), Policies(), fresh=True)
        assert len({each.kernel for each in found if each.verdict is Verdict.LEAK}) == 2

    def test_the_delay_is_a_chain_that_the_compiler_keeps(self):
        kernels = {
            kernel.name.partition("(")[0]: kernel for kernel in cubin.kernels(self._compiled("timing.cu").read_bytes())
        }
        code = [listed.instruction for listed in kernels["dhp::control_delay"].listing.code]
        added = [each for each in code if each.opcode == "FFMA"]
        assert len(added) >= 16
        assert all(len({operand.name for operand in each.operands[1:]}) == 1 for each in added)
        assert any(each.opcode == "STG" for each in code)
