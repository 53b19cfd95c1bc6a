"""The output and the log-sum-exp are those of the float64 reference, and of jax.nn where the two agree."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import dhp_jax
from dhp_jax import reference

_GROUPED = cases.Case("grouped", B=2, T=33, S=65, N=6, K=2, D=20)


@functools.cache
def _results(case, dtype):
    inputs = cases.make_inputs(case, dtype)
    return cases.run_forward(dhp_jax.dot_product_attention, inputs, **case.options)


@functools.cache
def _expected(case, dtype):
    return reference.forward(reference.Problem(**cases.make_inputs(case, dtype), **case.options))


class ForwardTest(parameterized.TestCase):
    @parameterized.named_parameters(cases.named())
    def test_output_is_that_of_reference(self, case, dtype):
        out, _ = _results(case, dtype)
        cases.assert_close(out, _expected(case, dtype)[0], cases.tolerance("out", dtype))

    @parameterized.named_parameters(cases.named())
    def test_log_sum_exp_is_that_of_reference(self, case, dtype):
        _, lse = _results(case, dtype)
        cases.assert_close(lse, _expected(case, dtype)[1], cases.tolerance("lse", dtype))

    # Only float32: in 16 bits jax.nn rounds the probabilities too.
    @parameterized.named_parameters(cases.named(dtypes=["float32"]))
    def test_output_is_that_of_jax_nn_where_a_key_takes_part(self, case, dtype):
        out, lse = _results(case, dtype)
        expected, _ = cases.run_forward(cases.oracle, cases.make_inputs(case, dtype), **case.options)
        is_alive = np.isfinite(lse)
        cases.assert_close(out[is_alive], expected[is_alive].astype(np.float64), 2 * cases.tolerance("out", dtype))

    @parameterized.parameters(("bfloat16", 2.0**-7), ("float16", 2.0**-10))
    def test_result_between_two_numbers_rounds_to_the_even_one(self, dtype, unit):
        query, key = np.zeros((1, 1, 8)), np.zeros((2, 1, 8))
        for lower, even in ((0, 0), (1, 2)):  # in units above 1; the mean with the next number is a tie
            value = np.full((2, 1, 8), 1 + lower * unit)
            value[1] += unit
            arrays = [jnp.asarray(array, dtype) for array in (query, key, value)]
            out = np.asarray(dhp_jax.dot_product_attention(*arrays), np.float64)
            np.testing.assert_array_equal(out, 1 + even * unit)


class ArgumentFormTest(parameterized.TestCase):
    """What jax.nn accepts besides the full form."""

    @parameterized.parameters(*cases.DTYPES)
    def test_output_has_shape_and_dtype_of_query(self, dtype):
        inputs = cases.make_inputs(_GROUPED, dtype)
        out = jax.eval_shape(lambda arrays: dhp_jax.dot_product_attention(**arrays), inputs)
        assert (out.shape, str(out.dtype)) == ((2, 33, 6, 20), dtype)

    def test_residual_does_not_change_the_output(self):
        inputs = cases.make_inputs(_GROUPED, "float32")
        with_residual, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs)
        np.testing.assert_array_equal(dhp_jax.dot_product_attention(**inputs), with_residual)

    def test_batch_axis_may_be_left_out(self):
        inputs = cases.make_inputs(_GROUPED, "float32")
        out, lse = cases.run_forward(dhp_jax.dot_product_attention, inputs)
        unbatched = {name: array[1] for name, array in inputs.items()}
        out_1, lse_1 = cases.run_forward(dhp_jax.dot_product_attention, unbatched)
        np.testing.assert_array_equal(out_1, out[1])
        np.testing.assert_array_equal(lse_1, lse[1])

    @parameterized.product(name=("bias", "mask"), shape=((65,), (33, 1), (33, 65), (6, 33, 65)))
    def test_leading_axes_of_bias_and_mask_may_be_left_out(self, name, shape):
        full_shape = (1,) * (4 - len(shape)) + shape
        rng = np.random.default_rng(0)
        array = rng.standard_normal(shape).astype(np.float32) if name == "bias" else rng.random(shape) < 0.7
        inputs = cases.make_inputs(_GROUPED, "float32")
        short, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs | {name: array})
        full, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs | {name: array.reshape(full_shape)})
        np.testing.assert_array_equal(short, full)

    def test_bias_may_be_float64(self):
        inputs = cases.make_inputs(_GROUPED, "float32")
        bias = np.random.default_rng(0).standard_normal((6, 33, 65))
        with jax.enable_x64(True):
            out, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs | {"bias": bias})
        expected, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs | {"bias": bias.astype(np.float32)})
        np.testing.assert_array_equal(out, expected)

    def test_window_may_be_wider_than_32_bits(self):
        inputs = cases.make_inputs(_GROUPED, "float32")
        expected, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs)
        out, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs, local_window_size=(2**70, 2**70))
        np.testing.assert_array_equal(out, expected)

    def test_arrays_may_be_nested_lists(self):
        inputs = {name: array.tolist() for name, array in cases.make_inputs(_GROUPED, "float32").items()}
        out = dhp_jax.dot_product_attention(**inputs)
        expected = dhp_jax.dot_product_attention(**cases.make_inputs(_GROUPED, "float32"))
        np.testing.assert_array_equal(out, expected)

    def test_scale_may_be_a_known_array(self):
        inputs = cases.make_inputs(_GROUPED, "float32")
        expected, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs, scale=0.5)
        out, _ = cases.run_forward(dhp_jax.dot_product_attention, inputs, scale=jnp.float32(0.5))
        np.testing.assert_array_equal(out, expected)


class ComparisonTest(parameterized.TestCase):
    """The comparison that these tests rest on can fail."""

    _EXPECTED = np.array([1.0, 0.5, -4.0])

    @parameterized.named_parameters(
        ("value_off", [1.0, 0.5 + 2e-5, -4.0]),
        ("nan_for_number", [1.0, np.nan, -4.0]),
        ("infinity_for_number", [1.0, 0.5, -np.inf]),
    )
    def test_fails_on(self, actual):
        with pytest.raises(AssertionError):
            cases.assert_close(np.array(actual, np.float32), self._EXPECTED, tolerance=4e-6)

    def test_fails_on_number_for_nan(self):
        with pytest.raises(AssertionError):
            cases.assert_close(self._EXPECTED.astype(np.float32), np.array([1.0, np.nan, -4.0]), tolerance=4e-6)

    @parameterized.parameters(*cases.DTYPES)
    def test_takes_the_rounding_of_a_dtype(self, dtype):
        values = np.random.default_rng(0).standard_normal(999)
        cases.assert_close(values.astype(jnp.dtype(dtype)), values, tolerance=0.0)
