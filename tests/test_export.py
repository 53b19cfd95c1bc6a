"""Programs that leave the process: serialized, run by another, or lowered for a GPU that is not here."""

import contextlib
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from programs import (
    LENGTHS,
    arrays,
    assert_same_bits,
    attend,
    attend_and_differentiate,
    custom_calls,
    native_calls,
    some,
    with_cotangent,
)

import dhp_jax

TARGETS = {"dhp_attention_fwd", "dhp_attention_bwd", "dhp_attention_bwd_bias"}

RUN_EXPORTED = """
import sys
import jax, jax.export, numpy as np
import dhp_jax.ffi
{register}
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.savez(sys.argv[3], *jax.tree.leaves(exported.call(dict(np.load(sys.argv[2])))))
assert "dhp_jax.attention" not in sys.modules
"""

run_single = jax.jit(attend_and_differentiate)


def export(function, arguments, **options):
    exported = jax.export.export(jax.jit(function), disabled_checks=dhp_jax.DISABLE_EXPORT_CHECKS, **options)
    return exported(arguments)


def carry(exported, **options):
    """The program after a trip through bytes."""
    return jax.export.deserialize(exported.serialize(**options))


def make_arguments(*names):
    return with_cotangent(some(arrays(), *names))


def lower_for_cuda(function, arguments):
    return jax.jit(function).trace(arguments).lower(lowering_platforms=("cuda",)).as_text()


class ExportTest(parameterized.TestCase):
    def test_a_deserialized_program_gives_the_same_bits(self):
        arguments = make_arguments("bias", "mask", *LENGTHS)
        assert_same_bits(carry(export(attend_and_differentiate, arguments)).call(arguments), run_single(arguments))

    def test_a_deserialized_program_may_be_differentiated(self):
        arguments = some(arrays(), "bias")

        def loss(function, arguments):
            return jnp.sum(function(arguments) ** 2)

        carried = carry(export(attend, arguments), vjp_order=1)
        gradient = jax.grad(lambda arguments: loss(carried.call, arguments))(arguments)
        assert_same_bits(gradient, jax.grad(lambda arguments: loss(attend, arguments))(arguments))

    def test_a_mapped_program(self):
        arguments = with_cotangent(some(arrays(lead=(6,)), "bias"))
        function = jax.vmap(attend_and_differentiate)
        assert_same_bits(carry(export(function, arguments)).call(arguments), jax.jit(function)(arguments))

    @parameterized.parameters(2, 9)
    def test_a_batch_of_a_size_not_known_when_exported(self, size):
        (batch,) = jax.export.symbolic_shape("batch")
        shapes = {
            name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for name, x in make_arguments("mask").items()
        }
        carried = carry(export(attend_and_differentiate, shapes))
        arguments = with_cotangent(some(arrays(b=size), "mask"))
        assert_same_bits(carried.call(arguments), run_single(arguments))

    def test_without_our_list_of_custom_calls_jax_refuses(self):
        with pytest.raises(ValueError, match=r"custom calls whose targets have no compatibility guarantees"):
            jax.export.export(run_single)(make_arguments())

    def test_our_list_names_every_custom_call_of_a_program(self):
        exported = export(attend_and_differentiate, make_arguments("bias"))
        assert custom_calls(exported.mlir_module()) == TARGETS


class PlatformTest(parameterized.TestCase):
    @parameterized.parameters(("cpu",), ("cuda",), ("cpu", "cuda"))
    def test_a_program_is_exported_for_platforms_that_are_not_here(self, *platforms):
        exported = carry(export(attend_and_differentiate, make_arguments("bias"), platforms=platforms))
        assert exported.platforms == platforms
        assert custom_calls(exported.mlir_module()) == TARGETS

    def test_a_program_for_both_platforms_runs_on_this_one(self):
        arguments = make_arguments("bias")
        exported = carry(export(attend_and_differentiate, arguments, platforms=("cuda", "cpu")))
        assert_same_bits(exported.call(arguments), run_single(arguments))

    def test_a_program_for_cuda_alone_does_not_run_on_the_cpu(self):
        arguments = make_arguments()
        exported = export(attend_and_differentiate, arguments, platforms=("cuda",))
        with pytest.raises(ValueError, match="was exported for platforms"):
            exported.call(arguments)

    def test_another_platform_is_refused_with_a_reason(self):
        with pytest.raises(NotImplementedError, match="it runs on cuda and cpu only"):
            export(attend, some(arrays()), platforms=("tpu",))


class FreshProcessTest(parameterized.TestCase):
    """A process that runs an exported program and calls nothing else of ours."""

    def run_program(self, register):
        """The child process, what it saved, and what it should have saved."""
        arguments = make_arguments("bias", "mask", *LENGTHS)
        with tempfile.TemporaryDirectory() as folder:
            program, inputs, results = (pathlib.Path(folder, name) for name in ("program", "in.npz", "out.npz"))
            program.write_bytes(export(attend_and_differentiate, arguments).serialize())
            np.savez(inputs, **arguments)
            command = [sys.executable, "-P", "-c", RUN_EXPORTED.format(register=register), program, inputs, results]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            with np.load(results) if results.exists() else contextlib.nullcontext({}) as saved:
                return process, list(saved.values()), jax.tree.leaves(run_single(arguments))

    def test_after_registering_the_targets_it_gives_the_same_bits(self):
        process, results, expected = self.run_program("dhp_jax.ffi.register_targets()")
        assert process.returncode == 0, process.stderr
        assert_same_bits(results, expected)

    def test_the_control_without_registering_it_fails(self):
        process, _, _ = self.run_program("")
        assert process.returncode != 0
        assert "dhp_attention_fwd" in process.stderr


class ShardedExportTest(parameterized.TestCase):
    def sharded(self):
        mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        arguments = some(arrays(b=6, n=8, k=4))
        return mesh, arguments, {n: jax.device_put(x, NamedSharding(mesh, P("x"))) for n, x in arguments.items()}

    def test_inside_shard_map_a_program_is_exported(self):
        mesh, arguments, placed = self.sharded()
        mapped = jax.shard_map(attend, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
        exported = carry(export(mapped, placed))
        assert exported.nr_devices == 8
        assert_same_bits(jax.jit(exported.call)(placed), attend(arguments))

    def test_a_program_that_the_compiler_shards_is_refused_by_jax(self):
        _, _, placed = self.sharded()
        with pytest.raises(NotImplementedError, match="serialization of host_callbacks"):
            export(attend, placed).serialize()


class CudaTextTest(parameterized.TestCase):
    """The program for a GPU, read where there is none."""

    def test_forward_is_one_custom_call_and_no_other(self):
        assert custom_calls(lower_for_cuda(attend, arrays())) == {"dhp_attention_fwd"}

    def test_a_gradient_is_three_custom_calls_and_no_other(self):
        text = lower_for_cuda(attend_and_differentiate, make_arguments("bias", "mask", *LENGTHS))
        assert native_calls(text) == ["fwd", "bwd", "bwd_bias"]
        assert custom_calls(text) == TARGETS

    @parameterized.named_parameters(
        ("plain", (), {}, {"scale": "0.353553385 : f32", "band_left": "5 : i64", "band_right": "7 : i64"}),
        ("scale", (), {"scale": 0.5}, {"scale": "5.000000e-01 : f32"}),
        ("causal", (), {"is_causal": True}, {"band_left": "5 : i64", "band_right": "0 : i64"}),
        ("window", (), {"local_window_size": (2, 3)}, {"band_left": "2 : i64", "band_right": "3 : i64"}),
        ("bias", ("bias",), {}, {"has_bias": "true", "has_mask": "false"}),
        ("mask", ("mask",), {}, {"has_mask": "true", "has_bias": "false"}),
        ("query_lengths", LENGTHS[:1], {}, {"has_query_lengths": "true", "has_key_value_lengths": "false"}),
        ("key_lengths", LENGTHS[1:], {}, {"has_query_lengths": "false", "has_key_value_lengths": "true"}),
    )
    def test_the_options_are_attributes(self, names, options, attributes):
        text = lower_for_cuda(lambda arguments: attend(arguments, **options), some(arrays(), *names))
        written = dict(re.findall(r"(\w+) = ([^,}]+)", re.search(r"mhlo.backend_config = {(.*?)}", text)[1]))
        assert {name: written[name] for name in attributes} == attributes

    def test_forward_and_backward_have_equal_attributes(self):
        text = lower_for_cuda(attend_and_differentiate, make_arguments("bias"))
        assert len(set(re.findall(r"mhlo.backend_config = {.*?}", text))) == 1

    def test_every_operand_and_result_is_dense_row_major(self):
        text = lower_for_cuda(attend_and_differentiate, make_arguments("bias", "mask", *LENGTHS))
        layouts = re.findall(r"dense<\[([\d, ]+)\]> : tensor<\dxindex>", text)
        assert {len(layout.split(",")) for layout in layouts} == {2, 4, 5}
        for layout in layouts:
            assert layout == ", ".join(map(str, reversed(range(len(layout.split(","))))))

    def test_an_argument_that_is_not_mapped_reaches_the_call_once(self):
        arguments = some(arrays(lead=(6,)), "bias")
        axes = {"query": 0, "key": None, "value": 0, "bias": None}
        arguments = {name: x if axes[name] == 0 else x[0] for name, x in arguments.items()}
        text = lower_for_cuda(jax.vmap(attend, in_axes=(axes,)), arguments)
        types = re.search(r"@dhp_attention_fwd.*: \((.*?)\) -> ", text)[1]
        query, value = "tensor<6x3x5x4x8xf32>", "tensor<6x3x7x2x8xf32>"
        assert types.split(", ") == [query, "tensor<1x3x7x2x8xf32>", value, "tensor<1x1x4x5x7xf32>"]

    @parameterized.parameters("float32", "bfloat16", "float16")
    def test_arguments_reach_the_call_in_their_own_dtype(self, dtype):
        name = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
        text = lower_for_cuda(attend, some(arrays(dtype=dtype)))
        types = re.search(r"@dhp_attention_fwd.*: \((.*?)\) -> \((.*?)\)", text)
        assert set(re.findall(r"\w*x(\w+)>", types[1])) == {name}
        out, *statistics = re.findall(r"\w*x(\w+)>", types[2])
        assert out == name
        assert set(statistics) == {"f32"}


class MemoryTest(parameterized.TestCase):
    """Nothing of size T x S is made where the caller passed nothing of that size."""

    T, S = 1037, 2053

    def arguments(self):
        arguments = arrays(t=self.T, s=self.S)
        broadcast = {"bias": arguments["bias"][:, :, :1], "mask": arguments["mask"][..., :1]}
        return with_cotangent(arguments | broadcast)

    def shapes_of_scores(self, text):
        shapes = {tuple(map(int, re.findall(r"\d+(?=x)", sizes))) for sizes in re.findall(r"tensor<(\S+)>", text)}
        return {shape for shape in shapes if {self.T, self.S} <= set(shape) or self.T * self.S in shape}

    def temporary_bytes(self, function, arguments):
        return jax.jit(function).lower(arguments).compile().memory_analysis().temp_size_in_bytes

    def test_forward_for_cuda(self):
        arguments = some(self.arguments(), "bias", "mask", *LENGTHS)
        assert self.shapes_of_scores(lower_for_cuda(attend, arguments)) == set()

    def test_backward_for_cuda(self):
        assert self.shapes_of_scores(lower_for_cuda(attend_and_differentiate, self.arguments())) == set()

    def test_the_control_plain_attention_has_scores(self):
        plain = jax.jit(lambda arguments: jax.nn.dot_product_attention(**arguments))
        assert self.shapes_of_scores(plain.lower(some(self.arguments())).as_text())

    def test_compiled_for_the_cpu_temporaries_are_smaller_than_the_scores_of_one_head(self):
        assert self.temporary_bytes(attend_and_differentiate, self.arguments()) < self.T * self.S * 4

    def test_the_control_temporaries_of_plain_attention_are_larger(self):
        def plain(arguments):
            return jax.nn.dot_product_attention(**arguments)

        assert self.temporary_bytes(plain, some(self.arguments())) > self.T * self.S * 4
