"""JAX's transformations mean with dot_product_attention what they mean with any function.

The plain version of every transformed program is beside it: a Python loop over calls of one jitted function.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax import lax
from programs import (
    FLOATS,
    LENGTHS,
    V,
    arguments_for,
    arrays,
    assert_close,
    assert_same_bits,
    attend,
    attend_and_differentiate,
    copied_shapes,
    native_calls,
    run_single,
    some,
    stack,
    with_cotangent,
)

import dhp_jax

SAVE_OUR_NAMES = jax.checkpoint_policies.save_only_these_names(*dhp_jax.CHECKPOINT_NAMES)


def sum_of_squares(arguments):
    return jnp.sum(attend(arguments) ** 2)


class JitTest(parameterized.TestCase):
    def test_jit_and_eager_agree_in_every_bit(self):
        arguments = with_cotangent(arrays())
        assert_same_bits(run_single(arguments), attend_and_differentiate(arguments))

    def test_a_call_without_tracing_in_python_agrees_with_jit(self):
        arguments = with_cotangent(arrays())
        with jax.disable_jit():
            result = attend_and_differentiate(arguments)
        assert_same_bits(result, run_single(arguments))

    def test_compiled_ahead_of_time_agrees_with_jit(self):
        arguments = with_cotangent(arrays())
        compiled = jax.jit(attend_and_differentiate).lower(arguments).compile()
        assert_same_bits(compiled(arguments), run_single(arguments))

    def test_ahead_of_time_needs_shapes_only(self):
        arguments = with_cotangent(arrays())
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        compiled = jax.jit(attend_and_differentiate).lower(shapes).compile()
        assert_same_bits(compiled(arguments), run_single(arguments))

    def test_a_donated_query_gives_up_its_buffer_and_changes_nothing(self):
        arguments = arrays()
        expected = jax.jit(attend)(arguments)
        query = jnp.array(arguments["query"])
        donating = jax.jit(lambda query, rest: attend({"query": query, **rest}), donate_argnums=0)
        rest = {name: array for name, array in arguments.items() if name != "query"}
        assert_same_bits(donating(query, rest), expected)
        assert query.is_deleted()

    def test_donating_every_argument_of_a_gradient_changes_nothing(self):
        arguments = with_cotangent(some(arrays(), "bias"))
        expected = run_single(arguments)
        copies = jax.tree.map(jnp.array, arguments)
        assert_same_bits(jax.jit(attend_and_differentiate, donate_argnums=0)(copies), expected)

    def test_one_function_takes_several_shapes(self):
        function = jax.jit(attend)
        for t, s in ((5, 7), (11, 7), (5, 13)):
            arguments = arrays(t=t, s=s)
            assert function(arguments).shape == arguments["query"].shape


class DerivativeTest(parameterized.TestCase):
    def test_value_and_grad_gives_the_value_and_the_gradient(self):
        arguments = some(arrays(), "bias")
        value, gradient = jax.jit(jax.value_and_grad(sum_of_squares))(arguments)
        assert_same_bits(value, jax.jit(sum_of_squares)(arguments))
        pulled_back = run_single(arguments | {"cotangent": 2 * attend(arguments)})
        assert_same_bits(gradient, {name: pulled_back[f"d_{name}"] for name in arguments})

    def test_gradients_are_those_of_the_plain_implementation(self):
        arguments = some(arrays(), "bias")
        plain = jax.grad(lambda x: jnp.sum(jax.nn.dot_product_attention(**x) ** 2))(arguments)
        assert_close(jax.grad(sum_of_squares)(arguments), plain, rtol=1e-4, atol=1e-5)

    def test_grad_of_one_argument_is_its_part_of_the_whole_gradient(self):
        arguments = some(arrays(), "bias")
        whole = jax.grad(sum_of_squares)(arguments)
        for name in arguments:
            part = jax.grad(lambda x, name=name: sum_of_squares(arguments | {name: x}))(arguments[name])
            assert_same_bits(part, whole[name])

    def test_cotangents_may_be_mapped(self):
        arguments = some(arrays(), "bias", "mask")
        _, pull_back = jax.vjp(
            lambda query, bias: attend(arguments | {"query": query, "bias": bias}),
            arguments["query"],
            arguments["bias"],
        )
        cotangents = jnp.asarray(np.random.default_rng(2).normal(size=(V, 3, 5, 4, 8)), "float32")
        assert_same_bits(jax.vmap(pull_back)(cotangents), stack([pull_back(x) for x in cotangents]))

    def test_a_jacobian_is_made_of_gradients(self):
        arguments = some(arrays(b=2, t=2, s=3, n=2, k=1))
        channels = jax.jacrev(lambda query: attend(arguments | {"query": query}).sum((0, 1, 2)))(arguments["query"])

        def gradient(channel):
            return jax.grad(lambda query: attend(arguments | {"query": query})[..., channel].sum())(arguments["query"])

        assert_same_bits(channels, stack([gradient(channel) for channel in range(8)]))

    def test_vmap_of_grad(self):
        arguments = some(arrays(lead=(V,)), "bias")
        mapped = jax.vmap(jax.grad(sum_of_squares))(arguments)
        loop = [jax.grad(sum_of_squares)({name: x[i] for name, x in arguments.items()}) for i in range(V)]
        assert_same_bits(mapped, stack(loop))

    @parameterized.parameters(*FLOATS)
    def test_grad_of_vmap_sums_over_the_maps_of_a_shared_argument(self, shared):
        arguments = some(arguments_for([(V, set(FLOATS) - {shared})]), "bias")
        axes = {name: None if name == shared else 0 for name in arguments}

        def total(arguments):
            return jnp.sum(jax.vmap(sum_of_squares, in_axes=(axes,))(arguments))

        gradients = [
            jax.grad(sum_of_squares)({name: x if name == shared else x[i] for name, x in arguments.items()})[shared]
            for i in range(V)
        ]
        assert_close(jax.grad(total)(arguments)[shared], sum(gradients), rtol=1e-5, atol=1e-5)

    def test_a_shared_argument_gets_the_sum_in_its_own_dtype(self):
        arguments = some(arrays(lead=(V,), dtype="bfloat16"))
        key = arguments["key"][0]

        def total(key):
            mapped = jax.vmap(lambda query, value: attend({"query": query, "key": key, "value": value}))
            return mapped(arguments["query"], arguments["value"]).astype("float32").sum()

        assert jax.grad(total)(key).dtype == jnp.bfloat16

    def test_no_gradient_passes_through_the_log_sum_exp(self):
        arguments = some(arrays(), "bias")

        def lse_sum(arguments):
            return attend(arguments, return_residual=True)[1].sum()

        assert float(lse_sum(arguments)) != 0.0
        assert_same_bits(jax.grad(lse_sum)(arguments), jax.tree.map(jnp.zeros_like, arguments))

    def test_using_the_log_sum_exp_leaves_the_gradient_of_the_output_alone(self):
        arguments = some(arrays(), "bias")

        def of_both(arguments):
            out, lse = attend(arguments, return_residual=True)
            return jnp.sum(out**2) + jnp.sum(lse**2)

        assert_same_bits(jax.grad(of_both)(arguments), jax.grad(sum_of_squares)(arguments))

    def test_a_second_derivative_is_refused_by_name(self):
        arguments = some(arrays(b=2, t=2, s=3, n=2, k=1))
        with pytest.raises(NotImplementedError, match="one reverse-mode derivative"):
            jax.hessian(lambda query: sum_of_squares(arguments | {"query": query}))(arguments["query"])

    def test_forward_mode_is_refused(self):
        arguments = some(arrays())
        with pytest.raises(NotImplementedError, match="takes forward mode"):
            jax.jvp(attend, (arguments,), (arguments,))


class CheckpointTest(parameterized.TestCase):
    def layer(self, arguments):
        return jnp.sum(attend(arguments | {"query": jnp.sin(arguments["query"])}) ** 2)

    def forward_calls(self, function):
        # With the value: a gradient alone would need no forward pass but the repeated one.
        lowered = jax.jit(jax.value_and_grad(function)).lower(some(arrays(), "bias")).as_text()
        return native_calls(lowered).count("fwd")

    def test_without_checkpoint_the_forward_pass_runs_once(self):
        assert self.forward_calls(self.layer) == 1

    def test_with_plain_checkpoint_the_forward_pass_runs_again(self):
        assert self.forward_calls(jax.checkpoint(self.layer)) == 2

    def test_with_our_names_saved_the_forward_pass_runs_once(self):
        assert self.forward_calls(jax.checkpoint(self.layer, policy=SAVE_OUR_NAMES)) == 1

    def test_the_control_other_names_saved_run_the_forward_pass_again(self):
        policy = jax.checkpoint_policies.save_only_these_names("of_somebody_else")
        assert self.forward_calls(jax.checkpoint(self.layer, policy=policy)) == 2

    @parameterized.named_parameters(("plain", None), ("our_names", SAVE_OUR_NAMES))
    def test_checkpoint_changes_no_bit_of_a_gradient(self, policy):
        arguments = some(arrays(), "bias")
        checkpointed = jax.jit(jax.grad(jax.checkpoint(self.layer, policy=policy)))
        assert_same_bits(checkpointed(arguments), jax.jit(jax.grad(self.layer))(arguments))

    def test_vmap_of_a_checkpointed_gradient(self):
        arguments = some(arrays(lead=(V,)), "bias")
        gradient = jax.grad(jax.checkpoint(self.layer, policy=SAVE_OUR_NAMES))
        loop = [gradient({name: x[i] for name, x in arguments.items()}) for i in range(V)]
        assert_same_bits(jax.vmap(gradient)(arguments), stack(loop))


class ControlFlowTest(parameterized.TestCase):
    num_layers = 3

    def weights(self):
        return jnp.asarray(np.random.default_rng(3).normal(size=(self.num_layers, 8, 8)), "float32")

    def layer(self, arguments, x, weight):
        return x + attend(arguments | {"query": x @ weight})

    def scanned(self, weights, arguments, wrap=lambda layer: layer):
        layer = wrap(functools.partial(self.layer, arguments))
        x, _ = lax.scan(lambda x, weight: (layer(x, weight), None), arguments["query"], weights)
        return jnp.sum(x**2)

    def unrolled(self, weights, arguments):
        x = arguments["query"]
        for weight in weights:
            x = self.layer(arguments, x, weight)
        return jnp.sum(x**2)

    def test_scan_agrees_with_the_unrolled_loop(self):
        arguments = some(arrays(), "bias", "mask")
        assert_close(self.scanned(self.weights(), arguments), self.unrolled(self.weights(), arguments), rtol=1e-5)

    def test_grad_of_scan_agrees_with_grad_of_the_unrolled_loop(self):
        arguments = some(arrays(), "bias")
        scanned = jax.grad(self.scanned, (0, 1))(self.weights(), arguments)
        unrolled = jax.grad(self.unrolled, (0, 1))(self.weights(), arguments)
        assert_close(scanned, unrolled, rtol=1e-4, atol=1e-4)

    def test_grad_of_a_scan_over_checkpointed_layers(self):
        arguments = some(arrays(), "bias")
        wrap = functools.partial(jax.checkpoint, policy=SAVE_OUR_NAMES)
        checkpointed = jax.grad(functools.partial(self.scanned, wrap=wrap), (0, 1))(self.weights(), arguments)
        assert_close(checkpointed, jax.grad(self.scanned, (0, 1))(self.weights(), arguments), rtol=1e-4, atol=1e-4)

    def test_vmap_of_scan_over_queries_alone(self):
        arguments = arguments_for([(V, ("query",))])
        arguments = some(arguments, "bias")
        axes = {name: 0 if name == "query" else None for name in arguments}
        mapped = jax.vmap(self.scanned, in_axes=(None, axes))(self.weights(), arguments)
        loop = [self.scanned(self.weights(), arguments | {"query": query}) for query in arguments["query"]]
        assert_close(mapped, stack(loop), rtol=1e-5)

    def test_map_over_queries(self):
        arguments = arguments_for([(V, ("query",))])
        mapped = lax.map(lambda query: attend(some(arguments) | {"query": query}), arguments["query"])
        loop = [attend(some(arguments) | {"query": query}) for query in arguments["query"]]
        assert_same_bits(mapped, stack(loop))

    @parameterized.parameters(True, False)
    def test_cond_takes_the_branch_it_is_told(self, with_bias):
        arguments = some(arrays(), "bias")
        chosen = jax.jit(lambda p: lax.cond(p, lambda: attend(arguments), lambda: attend(some(arguments))))(with_bias)
        assert_same_bits(chosen, attend(some(arguments, "bias") if with_bias else some(arguments)))

    def test_a_loop_of_unknown_length(self):
        arguments = some(arrays())

        def loop(steps):
            def body(state):
                step, x = state
                return step + 1, attend(arguments | {"query": x})

            return lax.while_loop(lambda state: state[0] < steps, body, (0, arguments["query"]))[1]

        x = arguments["query"]
        for _ in range(self.num_layers):
            x = attend(arguments | {"query": x})
        assert_same_bits(jax.jit(loop)(self.num_layers), x)


class UnusedWorkTest(parameterized.TestCase):
    def compiled_calls(self, names):
        """The native calls left in the compiled gradient of the arguments `names`, where there is a bias."""
        arguments = some(arrays(), "bias")

        def gradient(arguments):
            return jax.grad(lambda x: sum_of_squares(arguments | x))({name: arguments[name] for name in names})

        return sorted(native_calls(jax.jit(gradient).lower(arguments).compile().as_text()))

    @parameterized.parameters(("query",), ("key", "value"), ("query", "key", "value"))
    def test_a_gradient_nobody_asked_for_bias_does_not_compute(self, *names):
        assert self.compiled_calls(names) == ["bwd", "fwd"]

    def test_the_control_the_gradient_of_bias_is_computed_when_asked_for(self):
        assert self.compiled_calls(FLOATS) == ["bwd", "bwd_bias", "fwd"]

    def test_the_gradient_of_bias_alone_needs_no_other(self):
        assert self.compiled_calls(("bias",)) == ["bwd_bias", "fwd"]

    def test_without_a_gradient_there_is_one_call(self):
        text = jax.jit(attend).lower(arrays()).compile().as_text()
        assert native_calls(text) == ["fwd"]


class SettingsTest(parameterized.TestCase):
    """Process-wide settings of JAX, each as a context manager around calls that use every argument."""

    @parameterized.parameters("float32", "bfloat16", "float16")
    def test_64_bit_mode_changes_nothing(self, dtype):
        arguments = with_cotangent(arrays(dtype=dtype))
        expected = jax.jit(attend_and_differentiate)(arguments)
        with jax.enable_x64(True):
            assert_same_bits(jax.jit(attend_and_differentiate)(arguments), expected)

    def test_64_bit_lengths_compare_as_they_are(self):
        with jax.enable_x64(True):
            arguments = some(arrays(), *LENGTHS)
            long = {name: arguments[name].astype("int64") + 2**33 for name in LENGTHS}
            assert_same_bits(attend(arguments | long), attend(some(arguments)))

    def test_a_64_bit_bias_gets_a_64_bit_gradient(self):
        with jax.enable_x64(True):
            arguments = some(arrays(), "bias")
            bias = arguments["bias"].astype("float64")
            gradient = jax.grad(sum_of_squares)(arguments | {"bias": bias})["bias"]
            assert gradient.dtype == jnp.float64
            assert_same_bits(gradient, jax.grad(sum_of_squares)(arguments)["bias"].astype("float64"))

    @parameterized.named_parameters(("even_channels", 8), ("padded_channels", 11))
    def test_nothing_relies_on_rank_promotion(self, channels):
        arguments = with_cotangent(arrays(d=channels))
        expected = run_single(arguments)
        with jax.numpy_rank_promotion("raise"):
            assert_same_bits(jax.jit(attend_and_differentiate)(arguments), expected)

    @parameterized.parameters("float32", "bfloat16")
    def test_nothing_relies_on_dtype_promotion(self, bias_dtype):
        arguments = with_cotangent(arrays(dtype="float16"))
        arguments["bias"] = arguments["bias"].astype(bias_dtype)
        expected = run_single(arguments)
        with jax.numpy_dtype_promotion("strict"):
            assert_same_bits(jax.jit(attend_and_differentiate)(arguments), expected)

    def test_vmap_relies_on_no_promotion(self):
        arguments = with_cotangent(arrays(lead=(V,)))
        expected = jax.vmap(attend_and_differentiate)(arguments)
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            assert_same_bits(jax.vmap(attend_and_differentiate)(arguments), expected)

    def test_a_row_without_keys_is_no_nan(self):
        arguments = with_cotangent(some(arrays(), "mask"))
        arguments["mask"] = arguments["mask"].at[1, :, 2].set(False)
        with jax.debug_nans(True):
            results = jax.jit(attend_and_differentiate)(arguments)
        assert bool(jnp.all(results["lse"][1, 2] == -jnp.inf))

    def test_no_tracer_leaks(self):
        with jax.checking_leaks():
            jax.jit(jax.vmap(jax.grad(sum_of_squares)))(some(arrays(lead=(V,)), "bias"))


class CheckerTest(parameterized.TestCase):
    """The checks above can fail."""

    def test_a_flipped_bit_is_seen(self):
        arguments = arrays()
        out = np.array(attend(arguments))
        changed = out.copy()
        changed.view(np.uint32)[1, 2, 3, 4] ^= 1
        with pytest.raises(AssertionError, match="Mismatched elements: 1"):
            assert_same_bits({"out": changed}, {"out": out})

    def test_the_sign_of_zero_is_seen(self):
        with pytest.raises(AssertionError, match="signed zeros"):
            assert_same_bits(np.float32([0.0, 1.0]), np.float32([-0.0, 1.0]))

    def test_a_broadcast_is_seen(self):
        lowered = jax.jit(lambda x: jnp.broadcast_to(x, (V, 3, 5))).lower(jnp.zeros((3, 5))).as_text()
        assert copied_shapes(lowered) == [(V, 3, 5)]
