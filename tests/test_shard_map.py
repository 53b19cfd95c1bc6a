"""Inside shard_map, whole or partly manual: the same results as on one device, and no communication of ours."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from meshes import (
    CHECKS,
    LAYOUTS,
    MANUAL,
    MODES,
    OPTIONAL,
    cases,
    compile_and_run,
    forward,
    make_arguments,
    make_mesh,
    result_specs,
    run_forward,
    run_single,
    specs_of,
)
from programs import (
    FLOATS,
    LENGTHS,
    assert_close,
    assert_same_bits,
    attend_and_differentiate,
    collectives,
)


class ShardMapTest(parameterized.TestCase):
    """Fully manual: each device calls attention on its own shard."""

    def shard_map(self, function, mesh, arguments, specs, out_specs, **options):
        in_specs = ({name: specs.get(name, P()) for name in arguments},)
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options)

    @parameterized.named_parameters(*cases(MODES, CHECKS, LAYOUTS, {"k8": 8, "k4": 4}))
    def test_forward_and_gradients_inside(self, mode, check, layout, k):
        mesh, arguments, specs = make_mesh(mode), make_arguments(k=k), specs_of(*layout, k=k)
        function = self.shard_map(
            attend_and_differentiate,
            mesh,
            arguments,
            specs,
            result_specs(arguments, specs),
            check_vma=check,
        )
        compiled, results = compile_and_run(function, mesh, arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES, CHECKS))
    def test_every_optional_argument(self, mode, check):
        mesh, arguments, specs = make_mesh(mode), make_arguments(*OPTIONAL), specs_of("x", "y")
        of_results = P("x", None, "y"), P("x", None, "y")
        function = self.shard_map(forward, mesh, arguments, specs, of_results, check_vma=check)
        compiled, results = compile_and_run(function, mesh, arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, run_forward(arguments))

    @parameterized.named_parameters(*cases(MODES, CHECKS, {"bias": (4, "bias"), "one_key_head": (1,)}))
    def test_gradients_outside_are_summed_where_an_argument_is_replicated(self, mode, check, arguments_are):
        k, *names = arguments_are
        mesh, arguments, specs = make_mesh(mode), make_arguments(*names, k=k), specs_of("x", "y", k=k)
        call = self.shard_map(forward, mesh, arguments, specs, (specs["query"], P("x", None, "y")), check_vma=check)
        floats = [name for name in FLOATS if name in arguments]

        def gradients(arguments):
            def loss(floats):
                return jnp.sum(call(arguments | floats)[0] * arguments["cotangent"])

            return jax.grad(loss)({name: arguments[name] for name in floats})

        _, results = compile_and_run(gradients, mesh, arguments, specs)
        expected = run_single(arguments)
        assert_close(results, {name: expected[f"d_{name}"] for name in floats})

    @parameterized.named_parameters(*cases(MODES, {"bias": (4, "bias"), "one_key_head": (1,)}))
    def test_gradients_inside_are_summed_where_an_argument_does_not_vary(self, mode, arguments_are):
        k, *names = arguments_are
        mesh, arguments, specs = make_mesh(mode), make_arguments(*names, k=k), specs_of("x", "y", k=k)
        out_specs = result_specs(arguments, specs)
        function = self.shard_map(attend_and_differentiate, mesh, arguments, specs, out_specs)
        compiled, results = compile_and_run(function, mesh, arguments, specs)
        assert collectives(compiled) == {"all-reduce"}
        assert_close(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_unchecked_gradients_inside_are_those_of_the_shard(self, mode):
        """JAX sums none there; the caller does."""
        mesh, arguments, specs = make_mesh(mode), make_arguments(k=1), specs_of("x", "y", k=1)

        def function(arguments):
            results = attend_and_differentiate(arguments)
            return results | {name: jax.lax.psum(results[name], "y") for name in ("d_key", "d_value")}

        out_specs = result_specs(arguments, specs)
        summed = self.shard_map(function, mesh, arguments, specs, out_specs, check_vma=False)
        assert_close(compile_and_run(summed, mesh, arguments, specs)[1], run_single(arguments))

    @parameterized.named_parameters(*cases(MODES, CHECKS))
    def test_queries_cut_over_devices_with_whole_keys(self, mode, check):
        mesh, arguments = make_mesh(mode), make_arguments()
        specs = {"query": P(None, "x"), "cotangent": P(None, "x")}
        call = self.shard_map(forward, mesh, arguments, specs, (P(None, "x"), P(None, "x")), check_vma=check)

        def gradients(arguments):
            def loss(floats):
                return jnp.sum(call(arguments | floats)[0] * arguments["cotangent"])

            return jax.grad(loss)({name: arguments[name] for name in ("query", "key", "value")})

        _, results = compile_and_run(gradients, mesh, arguments, specs)
        expected = run_single(arguments)
        assert_close(results, {name: expected[f"d_{name}"] for name in ("query", "key", "value")})

    @parameterized.named_parameters(*cases(MODES))
    def test_results_vary_along_the_axes_of_any_argument(self, mode):
        mesh, arguments = make_mesh(mode), make_arguments(*OPTIONAL)
        specs = {"mask": P("x"), "bias": P(None, "y")}
        lengths = {name: arguments[name][:3] for name in LENGTHS}
        rows = {name: arguments[name][:3, :, :2] for name in ("query", "cotangent")}
        keys = {name: arguments[name][:3, :, :1] for name in ("key", "value")}
        arguments = arguments | lengths | rows | keys
        out_spec = P("x", None, "y")
        function = self.shard_map(forward, mesh, arguments, specs, (out_spec, out_spec))
        _, (out, _) = compile_and_run(function, mesh, arguments, specs)
        out = np.asarray(out)
        for i, j in itertools.product(range(2), range(4)):
            own = {"mask": arguments["mask"][3 * i : 3 * i + 3], "bias": arguments["bias"][:, 2 * j : 2 * j + 2]}
            expected, _ = run_forward(arguments | own)
            assert_same_bits(out[3 * i : 3 * i + 3, :, 2 * j : 2 * j + 2], expected)

    @parameterized.named_parameters(*cases(MODES, CHECKS))
    def test_vmap_inside(self, mode, check):
        mesh, arguments = make_mesh(mode), make_arguments(lead=(5,))
        specs = {name: P(None, *spec) for name, spec in specs_of("x", "y").items()}
        out_specs = {name: P(None, *spec) for name, spec in result_specs(arguments, specs_of("x", "y")).items()}
        function = jax.vmap(attend_and_differentiate)
        mapped = self.shard_map(function, mesh, arguments, specs, out_specs, check_vma=check)
        compiled, results = compile_and_run(mapped, mesh, arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, jax.jit(function)(arguments))

    def test_an_empty_batch(self):
        mesh, specs = make_mesh(AxisType.Auto), specs_of("x", "y")
        arguments = {name: x[:0] for name, x in make_arguments().items()}
        out_specs = result_specs(arguments, specs)
        function = self.shard_map(attend_and_differentiate, mesh, arguments, specs, out_specs)
        assert jax.jit(function)(arguments)["d_key"].shape == (0, 14, 4, 16)

    def test_vmap_outside(self):
        mesh, arguments, specs = make_mesh(AxisType.Auto), make_arguments(lead=(5,)), specs_of("x", "y")
        function = self.shard_map(attend_and_differentiate, mesh, arguments, specs, result_specs(arguments, specs))
        results = jax.jit(jax.vmap(function))(arguments)
        assert_same_bits(results, jax.jit(jax.vmap(attend_and_differentiate))(arguments))


class PartlyManualTest(parameterized.TestCase):
    """shard_map over one mesh axis; along the others the compiler shards, or the types do."""

    def function(self, mesh, arguments, manual, *, k=4, check=True):
        specs = specs_of(*manual, k=k)
        return jax.shard_map(
            attend_and_differentiate,
            mesh=mesh,
            in_specs=({name: specs[name] for name in arguments},),
            out_specs=result_specs(arguments, specs),
            axis_names={name for name in manual if name},
            check_vma=check,
        )

    @parameterized.named_parameters(*cases(MODES, MANUAL, CHECKS))
    def test_batch_and_heads_on_the_two_kinds_of_axes(self, mode, manual, check):
        mesh, arguments = make_mesh(mode), make_arguments()
        function = self.function(mesh, arguments, manual, check=check)
        compiled, results = compile_and_run(function, mesh, arguments, specs_of("x", "y"))
        assert collectives(compiled) == self.collectives_without_attention(mesh, arguments, manual)
        assert_same_bits(results, run_single(arguments))

    def collectives_without_attention(self, mesh, arguments, manual):
        """Those of an elementwise function: jax 0.10.2 gathers on an explicit mesh whatever shard_map contains."""
        specs = specs_of(*manual)
        function = jax.shard_map(
            lambda arguments: 2 * arguments["query"],
            mesh=mesh,
            in_specs=({name: specs[name] for name in arguments},),
            out_specs=specs["query"],
            axis_names={name for name in manual if name},
        )
        compiled, _ = compile_and_run(function, mesh, arguments, specs_of("x", "y"))
        return collectives(compiled)

    @parameterized.named_parameters(*cases(MODES, MANUAL, {"k1": 1}), *cases(MODES, {"x": MANUAL["x"]}, {"k2": 2}))
    def test_fewer_key_heads_than_devices(self, mode, manual, k):
        mesh, arguments = make_mesh(mode), make_arguments(k=k)
        function = self.function(mesh, arguments, manual, k=1)
        _, results = compile_and_run(function, mesh, arguments, specs_of("x", "y", k=1))
        assert_close(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MODES, MANUAL))
    def test_a_bias_whose_gradient_is_summed(self, mode, manual):
        mesh, arguments = make_mesh(mode), make_arguments("bias", "mask")
        function = self.function(mesh, arguments, manual)
        _, results = compile_and_run(function, mesh, arguments, specs_of("x", "y"))
        assert_close(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MANUAL))
    def test_a_sharded_sequence_is_gathered(self, manual):
        mesh, arguments = make_mesh(AxisType.Auto), make_arguments(t=12, s=20)
        (other,) = {"x", "y"} - set(manual)
        whole = {name: P(None, other) for name in ("query", "key", "value", "cotangent")}
        compiled, results = compile_and_run(self.function(mesh, arguments, manual), mesh, arguments, whole)
        assert "all-gather" in collectives(compiled)
        assert_same_bits(results, run_single(arguments))

    @parameterized.named_parameters(*cases(MANUAL))
    def test_nested_until_every_axis_is_manual(self, outer):
        mesh, arguments = make_mesh(AxisType.Auto), make_arguments()
        (inner,) = (layout for layout in MANUAL.values() if layout != outer)

        def outer_shard(arguments):
            return self.function(None, arguments, inner)(arguments)

        specs = specs_of(*outer)
        function = jax.shard_map(
            outer_shard,
            mesh=mesh,
            in_specs=({name: specs[name] for name in arguments},),
            out_specs=result_specs(arguments, specs),
            axis_names={name for name in outer if name},
        )
        assert_same_bits(compile_and_run(function, mesh, arguments, {})[1], run_single(arguments))

    def test_two_axes_of_one_size_that_are_not_manual(self):
        """JAX tells the callback sizes of shards but no mesh axes there; those of batch and heads look alike."""
        mesh, arguments = make_mesh(AxisType.Auto, (2, 2, 2), ("x", "y", "z")), make_arguments()
        function = self.function(mesh, arguments, MANUAL["y"])
        _, results = compile_and_run(function, mesh, arguments, specs_of("x", ("y", "z")))
        assert_same_bits(results, run_single(arguments))
