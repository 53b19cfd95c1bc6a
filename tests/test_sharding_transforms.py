"""On several devices, under vmap and in training: as in test_sharding.py.

Axis letters: B batch, T query position, S key position, N query heads, K key/value heads, D channels. The mesh is
x = 2 by y = 4; "auto" leaves shardings to the compiler, "explicit" has them in the types.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import (
    MODES,
    SIZES,
    cases,
    compile_and_run,
    forward,
    make_arguments,
    make_mesh,
    place,
    specs_of,
)
from programs import (
    arrays,
    assert_close,
    assert_same_bits,
    attend,
    attend_and_differentiate,
    collectives,
    some,
)

import dhp_jax


class VmapTest(parameterized.TestCase):
    V = 12

    def mapped_specs(self, mapped_axis, batch, heads):
        return {name: P(mapped_axis, *spec) for name, spec in specs_of(batch, heads).items()}

    @parameterized.named_parameters(
        *cases(MODES, {"mapped": ("x", None, None), "mapped_and_heads": ("x", None, "y"), "batch": (None, "x", "y")})
    )
    def test_the_mapped_axis_may_be_sharded(self, mode, layout):
        arguments = make_arguments(lead=(self.V,))
        function = jax.vmap(attend_and_differentiate)
        compiled, results = compile_and_run(function, make_mesh(mode), arguments, self.mapped_specs(*layout))
        assert collectives(compiled) == set()
        assert_same_bits(results, jax.jit(function)(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_keys_that_are_not_mapped_stay_whole_on_every_device(self, mode):
        mapped = make_arguments(lead=(self.V,))
        arguments = {name: x if name in ("query", "cotangent") else x[0] for name, x in mapped.items()}
        specs = {name: P("x", None, None, "y") for name in ("query", "cotangent")} | {
            name: P(None, None, "y") for name in ("key", "value")
        }
        axes = {name: 0 if name in ("query", "cotangent") else None for name in arguments}
        function = jax.vmap(forward, in_axes=(axes,))
        compiled, results = compile_and_run(function, make_mesh(mode), arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, jax.jit(function)(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_gradients_of_keys_that_are_not_mapped_are_summed(self, mode):
        mapped = make_arguments(lead=(self.V,))
        arguments = {name: x if name in ("query", "cotangent") else x[0] for name, x in mapped.items()}
        specs = {"query": P("x", None, None, "y"), "key": P(None, None, "y"), "value": P(None, None, "y")}

        def gradient(arguments):
            attend_all = jax.vmap(dhp_jax.dot_product_attention, in_axes=(0, None, None))
            return jax.grad(lambda key: jnp.sum(attend_all(arguments["query"], key, arguments["value"]) ** 2))(
                arguments["key"]
            )

        _, result = compile_and_run(gradient, make_mesh(mode), arguments, specs)
        assert_close(result, jax.jit(gradient)(arguments), rtol=1e-5, atol=1e-5)

    def test_a_mesh_axis_given_to_the_mapped_axis(self):
        mesh, arguments = make_mesh(AxisType.Auto), make_arguments(lead=(self.V,))

        def one(arguments):
            heads = NamedSharding(mesh, P(None, None, "y"))
            query = jax.lax.with_sharding_constraint(arguments["query"], heads)
            return attend_and_differentiate(arguments | {"query": query})

        function = jax.vmap(one, spmd_axis_name="x")
        specs = self.mapped_specs("x", None, "y")
        compiled, results = compile_and_run(function, mesh, arguments, specs)
        assert collectives(compiled) == set()
        assert_same_bits(results, jax.jit(jax.vmap(attend_and_differentiate))(arguments))

    @parameterized.named_parameters(*cases(MODES))
    def test_nested_maps_over_different_arguments(self, mode):
        arguments = some(arrays(**SIZES, k=4))
        arguments["query"] = jnp.stack([arguments["query"] * i for i in range(1, self.V + 1)])
        arguments["key"] = jnp.stack([arguments["key"] * i for i in range(1, 4 + 1)])
        specs = {"query": P("x", None, None, "y"), "key": P(None, None, None, "y"), "value": P(None, None, "y")}
        inner = jax.vmap(attend, in_axes=({"query": 0, "key": None, "value": None},))
        function = jax.vmap(inner, in_axes=({"query": None, "key": 0, "value": None},))
        _, results = compile_and_run(function, make_mesh(mode), arguments, specs)
        assert_same_bits(results, jax.jit(function)(arguments))


class TrainingTest(parameterized.TestCase):
    """Attention between projections: the shardings of its arguments are the compiler's to choose."""

    def loss(self, weights, x):
        def project(name, heads):
            return (x @ weights[name]).reshape(*x.shape[:2], heads, -1)

        out = dhp_jax.dot_product_attention(project("query", 8), project("key", 4), project("value", 4))
        return jnp.mean((out.reshape(*x.shape[:2], -1) @ weights["out"]) ** 2)

    def weights_and_input(self):
        generator = np.random.default_rng(4)

        def normal(*shape):
            return jnp.asarray(generator.normal(size=shape) / 5, "float32")

        weights = {"query": normal(24, 128), "key": normal(24, 64), "value": normal(24, 64), "out": normal(128, 24)}
        return weights, normal(6, 10, 24)

    @parameterized.named_parameters(
        ("data_parallel", {}, P("x")),
        ("tensor_parallel", {"query": P(None, "y"), "key": P(None, "y"), "value": P(None, "y"), "out": P("y")}, P("x")),
        ("sequence_parallel", {}, P("x", "y")),
    )
    def test_gradients_of_weights(self, specs, input_spec):
        weights, x = self.weights_and_input()
        mesh = make_mesh(AxisType.Auto)
        x = jnp.pad(x, ((0, 0), (0, 2), (0, 0)))  # T = 12, divisible by y
        placed = place(mesh, weights, specs), jax.device_put(x, NamedSharding(mesh, input_spec))
        gradients = jax.jit(jax.grad(self.loss))(*placed)
        assert_close(gradients, jax.jit(jax.grad(self.loss))(weights, x), rtol=1e-4, atol=1e-6)

    def test_tensor_parallel_attention_itself_moves_nothing(self):
        weights, x = self.weights_and_input()
        mesh = make_mesh(AxisType.Auto)
        specs = {"query": P(None, "y"), "key": P(None, "y"), "value": P(None, "y"), "out": P("y")}
        placed = place(mesh, weights, specs), jax.device_put(x, NamedSharding(mesh, P("x")))
        compiled = jax.jit(self.loss).lower(*placed).compile()
        assert collectives(compiled) == {"all-reduce"}  # of the last projection, and of the mean

    @parameterized.named_parameters(*cases(MODES))
    def test_grad_of_a_scan_over_checkpointed_layers(self, mode):
        arguments, specs = make_arguments(), specs_of("x", "y")
        del arguments["cotangent"]

        def loss(arguments):
            @jax.checkpoint
            def layer(x, scale):
                return x + attend(arguments | {"query": x * scale}), None

            x, _ = jax.lax.scan(layer, arguments["query"], jnp.array([0.3, 0.5, 0.7]))
            return jnp.mean(x**2)

        _, gradients = compile_and_run(jax.grad(loss), make_mesh(mode), arguments, specs)
        assert_close(gradients, jax.jit(jax.grad(loss))(arguments))

    def test_a_checkpointed_layer(self):
        weights, x = self.weights_and_input()
        mesh = make_mesh(AxisType.Auto)
        policy = jax.checkpoint_policies.save_only_these_names(*dhp_jax.CHECKPOINT_NAMES)
        gradient = jax.jit(jax.grad(jax.checkpoint(self.loss, policy=policy)))
        placed = place(mesh, weights, {}), jax.device_put(x, NamedSharding(mesh, P("x")))
        assert_close(gradient(*placed), jax.jit(jax.grad(self.loss))(weights, x), rtol=1e-4, atol=1e-6)
