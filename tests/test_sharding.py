"""On several devices: batch and heads stay sharded, sequences are gathered, and no result depends on the mesh.

Axis letters: B batch, T query position, S key position, N query heads, K key/value heads, D channels. The mesh is
x = 2 by y = 4; "auto" leaves shardings to the compiler, "explicit" has them in the types.
"""

import functools

import jax
import jax.numpy as jnp
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import (
    GATHERED,
    LAYOUTS,
    MODES,
    OPTIONAL,
    assert_sharded,
    cases,
    compile_and_run,
    forward,
    make_arguments,
    make_mesh,
    named,
    place,
    run_forward,
    run_single,
    specs_of,
)
from programs import (
    FLOATS,
    LENGTHS,
    assert_close,
    assert_same_bits,
    attend,
    attend_and_differentiate,
    collectives,
    native_calls,
)


class BatchAndHeadsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        *cases(MODES, LAYOUTS, {"k8": 8, "k4": 4}), *cases(MODES, {"batch": ("x", None)}, {"k2": 2, "k1": 1})
    )
    def test_no_device_talks_to_another(self, mode, layout, k):
        arguments, specs = make_arguments(k=k), specs_of(*layout, k=k)
        compiled, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES, LAYOUTS))
    def test_results_are_sharded_as_the_arguments_are(self, mode, layout):
        mesh, specs = make_mesh(mode), specs_of(*layout)
        _, results = compile_and_run(attend_and_differentiate, mesh, make_arguments(), specs)
        for name in ("query", "key", "value"):
            assert_sharded(results[f"d_{name}"], mesh, specs[name])
        assert_sharded(results["out"], mesh, specs["query"])
        assert_sharded(results["lse"], mesh, P(layout[0], None, layout[1]))

    @parameterized.named_parameters(*cases(MODES, LAYOUTS))
    def test_optional_arguments_may_be_sharded_alike(self, mode, layout):
        arguments, specs = make_arguments(*OPTIONAL), specs_of(*layout)
        compiled, results = compile_and_run(forward, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_forward(arguments))

    @parameterized.named_parameters(*cases(MODES, LAYOUTS, {"k8": 8, "k4": 4, "k1": 1}))
    def test_optional_arguments_may_be_replicated(self, mode, layout, k):
        arguments, specs = make_arguments(*OPTIONAL, k=k), specs_of(*layout, k=k)
        specs = {name: specs[name] for name in ("query", "key", "value", "cotangent")}
        compiled, results = compile_and_run(forward, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_forward(arguments))

    @parameterized.named_parameters(*cases(MODES, LAYOUTS))
    def test_gradients_with_every_optional_argument_replicated(self, mode, layout):
        arguments, specs = make_arguments(*OPTIONAL), specs_of(*layout)
        specs = {name: specs[name] for name in ("query", "key", "value", "cotangent")}
        _, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        expected = run_single(arguments)
        assert_close(results.pop("d_bias"), expected.pop("d_bias"))
        assert_same_bits(results, expected)

    @parameterized.named_parameters(*cases(MODES, LAYOUTS))
    def test_query_alone_may_be_sharded(self, mode, layout):
        arguments, specs = make_arguments(), specs_of(*layout)
        specs = {name: specs[name] for name in ("query", "cotangent")}
        _, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(
        *cases(MODES, {"batch": ("x", None), "both": ("x", "y")}, named((("key", "value"), ("bias", "mask"), LENGTHS)))
    )
    def test_query_alone_may_be_replicated(self, mode, layout, sharded):
        arguments, specs = make_arguments(*OPTIONAL), specs_of(*layout)
        specs = {name: specs[name] for name in sharded}
        _, results = compile_and_run(forward, make_mesh(mode), arguments, specs)
        assert_same_bits(results, run_forward(arguments))

    @parameterized.named_parameters(*cases(MODES, {"batch": (("x", "y"), None), "heads": (None, ("x", "y"))}))
    def test_one_axis_over_the_whole_mesh(self, mode, layout):
        arguments, specs = make_arguments(k=8, b=24), specs_of(*layout, k=8)
        compiled, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_channels_that_need_padding(self, mode):
        arguments, specs = make_arguments(d=20), specs_of("x", "y")
        compiled, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES, {"causal": {"is_causal": True, "local_window_size": (3, 1)}}))
    def test_static_options(self, mode, options):
        arguments, specs = make_arguments(), specs_of("x", "y")
        function = functools.partial(attend_and_differentiate, **options)
        compiled, results = compile_and_run(function, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, jax.jit(function)(arguments))

    def test_shardings_of_arguments_alone_suffice(self):
        mesh, arguments = make_mesh(AxisType.Auto), make_arguments(*OPTIONAL)
        placed = place(mesh, arguments, specs_of("x", "y"))
        compiled = jax.jit(forward).lower(placed).compile()
        assert collectives(compiled) == set()
        assert_same_bits(compiled(placed), run_forward(arguments))

    def test_a_mesh_of_both_kinds_of_axes(self):
        mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Explicit))
        arguments, specs = make_arguments(), specs_of("x", "y")
        compiled, results = compile_and_run(attend_and_differentiate, mesh, arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_a_call_outside_jit_is_right(self, mode):
        mesh, arguments = make_mesh(mode), make_arguments("mask")
        with jax.set_mesh(mesh):
            results = attend_and_differentiate(place(mesh, arguments, specs_of("x", "y")))
        assert_same_bits(results, run_single(arguments))

    def test_a_batch_that_does_not_divide_evenly_is_right(self):
        mesh, arguments = make_mesh(AxisType.Auto), make_arguments(b=5)
        uneven = NamedSharding(mesh, P("y"))

        def function(arguments):
            query = jax.lax.with_sharding_constraint(arguments["query"], uneven)
            return attend_and_differentiate(arguments | {"query": query})

        assert_same_bits(compile_and_run(function, mesh, arguments, {})[1], run_single(arguments))


class FewKeyHeadsTest(parameterized.TestCase):
    @parameterized.named_parameters(*cases(MODES, {"heads": (None, "y"), "both": ("x", "y")}))
    def test_heads_over_more_devices_than_there_are_keys(self, mode, layout):
        arguments, specs = make_arguments(k=2), specs_of(*layout, k=2)
        _, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES, {"heads": (None, "y"), "both": ("x", "y")}))
    def test_one_key_head_needs_no_communication_forward(self, mode, layout):
        arguments, specs = make_arguments(k=1), specs_of(*layout, k=1)
        compiled, results = compile_and_run(forward, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_forward(arguments))

    @parameterized.named_parameters(*cases(MODES, {"heads": (None, "y"), "both": ("x", "y")}))
    def test_one_key_head_has_its_gradient_summed_over_devices(self, mode, layout):
        arguments, specs = make_arguments(k=1), specs_of(*layout, k=1)
        compiled, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == {"all-reduce"}
        assert_close(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_a_gradient_summed_over_devices_keeps_its_dtype(self, mode):
        arguments, specs = make_arguments(k=1, dtype="bfloat16"), specs_of("x", "y", k=1)
        _, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        expected = run_single(arguments)
        assert results["d_key"].dtype == jnp.bfloat16
        assert_close(results, expected, rtol=2**-6, atol=2**-6)  # parts and sum are rounded to 8 bits each


class BiasTest(parameterized.TestCase):
    @parameterized.named_parameters(*cases(MODES))
    def test_a_bias_for_every_batch_and_head_needs_no_communication(self, mode):
        arguments = make_arguments("bias")
        arguments["bias"] = jnp.broadcast_to(arguments["bias"], (6, 8, 10, 14))
        specs = specs_of("x", "y") | {"bias": P("x", "y")}
        compiled, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_a_bias_shared_by_the_batch_has_its_gradient_summed_over_devices(self, mode):
        arguments, specs = make_arguments("bias"), specs_of("x", "y")
        compiled, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == {"all-reduce"}
        assert_close(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_a_bias_shared_by_all_has_its_gradient_summed_over_all_devices(self, mode):
        arguments, specs = make_arguments("bias"), specs_of("x", "y")
        arguments["bias"] = arguments["bias"][:, :1]
        specs.pop("bias")
        _, results = compile_and_run(attend_and_differentiate, make_mesh(mode), arguments, specs)
        assert_close(results, run_single(arguments))


class GatheredAxesTest(parameterized.TestCase):
    """A sequence or channel axis that is sharded costs a gather and changes no bit."""

    @parameterized.named_parameters(*cases(MODES, GATHERED))
    def test_forward(self, mode, specs):
        arguments = make_arguments("bias", "mask")
        compiled, results = compile_and_run(forward, make_mesh(mode), arguments, specs)
        assert "all-gather" in collectives(compiled)
        assert_same_bits(results, run_forward(arguments))

    @parameterized.named_parameters(*cases(MODES, GATHERED))
    def test_gradients(self, mode, specs):
        arguments = make_arguments("bias", "mask")
        del arguments["cotangent"]

        def gradients(arguments):
            floats = {name: arguments[name] for name in FLOATS}
            return jax.grad(lambda floats: jnp.sum(attend(arguments | floats) ** 2))(floats)

        _, results = compile_and_run(gradients, make_mesh(mode), arguments, specs)
        assert_same_bits(results, jax.jit(gradients)(arguments))

    def test_a_sharded_cotangent(self):
        arguments, specs = make_arguments("bias"), {"cotangent": P(None, "x")}
        _, results = compile_and_run(attend_and_differentiate, make_mesh(AxisType.Auto), arguments, specs)
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(
        *cases(
            MODES,
            {
                "batch_and_heads_on_one_mesh_axis": {"query": P("x"), "key": P(None, None, "x")},
                "batch_on_two_mesh_axes": {"query": P("x"), "key": P("y"), "value": P(("x", "y"))},
                "swapped": {"query": P("x", None, "y"), "key": P("y", None, "x"), "value": P("y", None, "x")},
            },
        )
    )
    def test_arguments_that_disagree(self, mode, specs):
        arguments = make_arguments(b=24)
        _, results = compile_and_run(forward, make_mesh(mode), arguments, specs)
        assert_same_bits(results, run_forward(arguments))


class TypeTest(parameterized.TestCase):
    """Explicit sharding: what the type says of a result."""

    def types(self, arguments, specs):
        mesh = make_mesh(AxisType.Explicit)
        placed = place(mesh, arguments, specs)
        with jax.set_mesh(mesh):
            return jax.eval_shape(attend_and_differentiate, placed), placed

    @parameterized.named_parameters(*cases(LAYOUTS))
    def test_output_and_log_sum_exp_are_sharded_as_the_query_is(self, layout):
        batch, heads = layout
        types, _ = self.types(make_arguments(), specs_of(batch, heads))
        assert types["out"].sharding.spec == P(batch, None, heads, None)
        assert types["lse"].sharding.spec == P(batch, None, heads)

    @parameterized.named_parameters(*cases(LAYOUTS))
    def test_a_gradient_has_the_type_of_its_argument(self, layout):
        types, placed = self.types(make_arguments(*OPTIONAL), specs_of(*layout))
        for name in FLOATS:
            assert types[f"d_{name}"].sharding.spec == jax.typeof(placed[name]).sharding.spec

    @parameterized.named_parameters(*cases(LAYOUTS))
    def test_a_result_has_the_sharding_of_its_type(self, layout):
        arguments, specs = make_arguments(), specs_of(*layout)
        types, _ = self.types(arguments, specs)
        mesh = make_mesh(AxisType.Explicit)
        _, results = compile_and_run(attend_and_differentiate, mesh, arguments, specs)
        for name, result in results.items():
            assert_sharded(result, mesh, types[name].sharding.spec)


class CheckerTest(parameterized.TestCase):
    """The checks above can fail."""

    @parameterized.named_parameters(
        ("all_reduce", lambda x: jax.lax.psum(x, "x"), {"all-reduce"}),
        ("all_gather", lambda x: jax.lax.all_gather(x, "x", tiled=True), {"all-gather"}),
        ("all_to_all", lambda x: jax.lax.all_to_all(x, "x", 0, 0, tiled=True), {"all-to-all"}),
        ("permute", lambda x: jax.lax.ppermute(x, "x", [(0, 1), (1, 0)]), {"collective-permute"}),
        ("reduce_scatter", lambda x: jax.lax.psum_scatter(x, "x", tiled=True), {"reduce-scatter"}),
        ("none", lambda x: x * x, set()),
    )
    def test_communication_is_seen(self, function, kinds):
        mesh = make_mesh(AxisType.Auto)
        mapped = jax.shard_map(function, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
        assert collectives(jax.jit(mapped).lower(jnp.zeros((8, 6))).compile()) == kinds

    def test_a_program_of_eight_devices_holds_the_native_call(self):
        arguments, specs = make_arguments(), specs_of("x", "y")
        compiled, _ = compile_and_run(forward, make_mesh(AxisType.Auto), arguments, specs)
        assert native_calls(compiled.as_text()) == ["fwd"]
