"""The gradients are those of the float64 reference, of jax.nn where the two agree, and of finite differences."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.test_util import check_grads

import dhp_jax
from dhp_jax import primitive, reference, spec

_GROUPED = cases.Case("grouped", B=2, T=33, S=65, N=6, K=2, D=20, bias="nts")

# The primitives take channels in multiples of 8 only.
_PRIMITIVE_CASES = [case for case in cases.CASES if case.D % 8 == 0]
_BIAS_CASES = [case for case in _PRIMITIVE_CASES if case.bias is not None]

# Small: a finite difference is as inexact as the sum of all outputs. scale keeps the softmax from being too curved.
_FINITE_DIFFERENCE_CASES = (
    cases.Case("grouped", B=2, T=5, S=7, N=6, K=3, D=4),
    cases.Case("causal_bias", B=3, T=7, S=5, N=4, K=2, D=8, is_causal=True, bias="nts"),
    cases.Case("window_keys_bias", B=2, T=9, S=7, N=3, K=3, D=4, window=(3, 2), bias="bs"),
    cases.Case("mask_lengths", B=3, T=7, S=9, N=4, K=2, D=5, mask="ts", query_lengths=True, key_value_lengths=True),
)


@functools.cache
def _results(case, dtype):
    inputs, (d_out, _) = cases.make_inputs(case, dtype), cases.make_cotangents(case, dtype)
    return cases.run_backward(dhp_jax.dot_product_attention, inputs, d_out, **case.options)


def _run_primitive(name, case, inputs, d_out, d_lse):
    """All results but delta of a backward primitive, which unlike the public function takes a cotangent of lse."""
    arguments = spec.Arguments(**inputs)
    options = spec.AttentionSpec.from_arguments(arguments, **case.options).options

    @jax.jit
    def backward(operands, d_out, d_lse):
        out, *statistics = primitive.call_native("attention_fwd", options, operands)
        return primitive.call_native(name, options, [*operands, out, *statistics, d_out, d_lse])[:-1]

    operands = [jnp.asarray(array)[None] for array in arguments if array is not None]
    return [np.asarray(result)[0] for result in backward(operands, d_out[None], d_lse[None])]


class BackwardTest(parameterized.TestCase):
    @parameterized.named_parameters(cases.named())
    def test_gradients_are_those_of_reference(self, case, dtype):
        inputs, (d_out, _) = cases.make_inputs(case, dtype), cases.make_cotangents(case, dtype)
        expected = cases.reference_backward(inputs, d_out, **case.options)
        cases.assert_gradients_close(_results(case, dtype), expected, dtype)

    # Only float32: in 16 bits jax.nn rounds the probabilities too.
    @parameterized.named_parameters(cases.named(dtypes=["float32"]))
    def test_gradients_are_those_of_jax_nn_where_a_key_takes_part(self, case, dtype):
        inputs, (d_out, _) = cases.make_inputs(case, dtype), cases.make_cotangents(case, dtype)
        _, lse = reference.forward(reference.Problem(**inputs, **case.options))
        d_out = np.where(np.isfinite(lse)[..., None], d_out, np.float32(0))
        oracle = cases.run_backward(cases.oracle, inputs, d_out, **case.options)
        expected = {name: gradient.astype(np.float64) for name, gradient in oracle.items()}
        cases.assert_gradients_close(_results(case, dtype), expected, dtype)

    @parameterized.named_parameters(cases.named(_FINITE_DIFFERENCE_CASES, ["float32"]))
    def test_gradients_are_those_of_finite_differences(self, case, dtype):
        inputs = cases.make_inputs(case, dtype)
        floating = {name: array for name, array in inputs.items() if name in cases.FLOATING}

        @jax.jit
        def attention(floating):
            return dhp_jax.dot_product_attention(**(inputs | floating), **case.options)

        check_grads(attention, (floating,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)

    @parameterized.named_parameters(cases.named(_PRIMITIVE_CASES, ["float32"]))
    def test_cotangent_of_log_sum_exp_enters_gradients(self, case, dtype):
        inputs, (d_out, d_lse) = cases.make_inputs(case, dtype), cases.make_cotangents(case, dtype)
        gradients = _run_primitive("attention_bwd", case, inputs, d_out, d_lse)
        actual = dict(zip(("query", "key", "value"), gradients, strict=True))
        expected = cases.reference_backward(inputs, d_out, d_lse, **case.options)
        expected.pop("bias", None)
        cases.assert_gradients_close(actual, expected, dtype)

    @parameterized.named_parameters(cases.named(_BIAS_CASES, ["float32"]))
    def test_cotangent_of_log_sum_exp_enters_gradient_of_bias(self, case, dtype):
        inputs, (d_out, d_lse) = cases.make_inputs(case, dtype), cases.make_cotangents(case, dtype)
        (actual,) = _run_primitive("attention_bwd_bias", case, inputs, d_out, d_lse)
        expected = cases.reference_backward(inputs, d_out, d_lse, **case.options)["bias"]
        cases.assert_close(actual, expected, cases.tolerance("bias", dtype))


class GradientFormTest(parameterized.TestCase):
    @parameterized.product(dtype=cases.DTYPES, bias_dtype=cases.DTYPES)
    def test_gradients_have_shapes_and_dtypes_of_arguments(self, dtype, bias_dtype):
        inputs = cases.make_inputs(_GROUPED, dtype)
        inputs["bias"] = inputs["bias"].astype(bias_dtype)
        gradients = cases.run_backward(dhp_jax.dot_product_attention, inputs, inputs["query"])
        for name, array in inputs.items():
            assert (gradients[name].shape, gradients[name].dtype) == (array.shape, array.dtype), name

    def test_gradients_of_unbatched_call_are_those_of_batch_element(self):
        inputs = cases.make_inputs(_GROUPED, "float32")
        batched = cases.run_backward(dhp_jax.dot_product_attention, inputs, inputs["query"])
        unbatched = {name: array if name == "bias" else array[1] for name, array in inputs.items()}
        actual = cases.run_backward(dhp_jax.dot_product_attention, unbatched, unbatched["query"])
        for name in ("query", "key", "value"):
            np.testing.assert_array_equal(actual[name], batched[name][1])

    def test_gradient_of_one_argument_is_that_of_all(self):
        inputs = cases.make_inputs(_GROUPED, "float32")
        together = cases.run_backward(dhp_jax.dot_product_attention, inputs, np.ones_like(inputs["query"]))
        for name in cases.FLOATING:
            alone = jax.grad(lambda x, name=name: dhp_jax.dot_product_attention(**(inputs | {name: x})).sum())
            np.testing.assert_array_equal(jax.jit(alone)(inputs[name]), together[name])

    def test_float64_bias_has_float64_gradient(self):
        inputs = cases.make_inputs(_GROUPED, "float32")
        expected = cases.run_backward(dhp_jax.dot_product_attention, inputs, inputs["query"])["bias"]
        with jax.enable_x64(True):
            wide = inputs | {"bias": inputs["bias"].astype(np.float64)}
            actual = cases.run_backward(dhp_jax.dot_product_attention, wide, inputs["query"])["bias"]
        assert actual.dtype == np.float64
        np.testing.assert_array_equal(actual, expected)

    def test_residual_passes_no_gradient(self):
        inputs = cases.make_inputs(_GROUPED, "float32")

        def sum_of_residual(query):
            return dhp_jax.dot_product_attention(**(inputs | {"query": query}), return_residual=True)[1].sum()

        np.testing.assert_array_equal(jax.grad(sum_of_residual)(inputs["query"]), np.zeros_like(inputs["query"]))
