"""Where we promise another result than jax.nn, where we promise its result for odd values, and empty arrays."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import dhp_jax
from dhp_jax import primitive, reference, spec

# A group of query heads; T and S cross the edges of the CPU kernels' blocks.
_CASE = cases.Case("grouped", B=3, T=97, S=129, N=4, K=2, D=8)
_BIAS_CASE = cases.Case("with_bias", B=3, T=97, S=129, N=4, K=2, D=8, bias="nts")


def _inputs(case=_CASE, dtype="float32", **changes):
    """The arrays of a case; a keyword (index, value) names an array and sets that value there."""
    inputs = cases.make_inputs(case, dtype)
    for name, (index, value) in changes.items():
        inputs[name][index] = value
    return inputs


def _forward(inputs, **options):
    return cases.run_forward(dhp_jax.dot_product_attention, inputs, **options)


def _backward(inputs, d_out, **options):
    return cases.run_backward(dhp_jax.dot_product_attention, inputs, d_out, **options)


def _d_out(dtype="float32"):
    return cases.make_cotangents(_CASE, dtype)[0]


# What leaves some rows without a key: (arrays, options) of a call in which it does.
_EMPTYINGS = (
    ("by_mask", {"mask": np.arange(97)[:, None] % 3 != 0}, {}),
    ("by_query_length", {"query_seq_lengths": np.array([96, 0, 5], np.int32)}, {}),
    ("by_key_value_length", {"key_value_seq_lengths": np.array([64, 0, 129], np.int32)}, {}),
    ("by_window", {}, {"local_window_size": (60, -40)}),
    ("by_infinite_bias", {"bias": np.where(np.arange(97)[:, None] % 3, np.float32(0.5), -np.inf)}, {}),
    (
        "by_mask_and_length_together",
        {"mask": np.arange(129) >= 64, "key_value_seq_lengths": np.array([64, 100, 63], np.int32)},
        {},
    ),
)


def _is_empty(inputs, options):
    """[B, T, N], which rows have no key; a test needs rows of both kinds."""
    result = np.isneginf(reference.forward(reference.Problem(**inputs, **options))[1])
    assert 0 < result.sum() < result.size
    return result


class EmptyRowTest(parameterized.TestCase):
    """Difference 1: a row in which no key takes part."""

    @parameterized.named_parameters(*_EMPTYINGS)
    def test_output_is_0(self, arrays, options):
        inputs = _inputs(_BIAS_CASE) | arrays
        out, _ = _forward(inputs, **options)
        np.testing.assert_array_equal(out[_is_empty(inputs, options)], 0)

    @parameterized.named_parameters(*_EMPTYINGS)
    def test_log_sum_exp_is_minus_infinity(self, arrays, options):
        inputs = _inputs(_BIAS_CASE) | arrays
        _, lse = _forward(inputs, **options)
        np.testing.assert_array_equal(np.isneginf(lse), _is_empty(inputs, options))

    @parameterized.named_parameters(*_EMPTYINGS)
    def test_gradient_of_query_is_0(self, arrays, options):
        inputs = _inputs(_BIAS_CASE) | arrays
        gradients = _backward(inputs, _d_out(), **options)
        np.testing.assert_array_equal(gradients["query"][_is_empty(inputs, options)], 0)

    @parameterized.named_parameters(*_EMPTYINGS)
    def test_cotangent_enters_no_gradient(self, arrays, options):
        inputs = _inputs(_BIAS_CASE) | arrays
        with_it = _backward(inputs, _d_out(), **options)
        zeroed = np.where(_is_empty(inputs, options)[..., None], np.float32(0), _d_out())
        without_it = _backward(inputs, zeroed, **options)
        for name, gradient in with_it.items():
            np.testing.assert_array_equal(gradient, without_it[name])

    def test_output_is_0_where_masked_values_are_not_finite(self):
        inputs = _inputs(value=(np.s_[:], np.nan)) | {"mask": np.zeros((1, 1), bool)}
        np.testing.assert_array_equal(_forward(inputs)[0], 0)

    @parameterized.parameters(*cases.DTYPES)
    def test_lowest_finite_bias_is_a_score_like_any_other(self, dtype):
        inputs = _inputs(dtype=dtype) | {"bias": np.full((97, 1), np.finfo(np.float32).min)}
        out, _ = _forward(inputs)
        expected, _ = reference.forward(reference.Problem(**inputs))
        cases.assert_close(out, expected, cases.tolerance("out", dtype))

    @parameterized.parameters(np.finfo(np.float32).min, -1e9)
    def test_lowest_finite_bias_has_the_gradients_of_jax_nn(self, lowest):
        inputs = _inputs() | {"bias": np.full((97, 1), lowest, np.float32)}
        expected = cases.run_backward(cases.oracle, inputs, _d_out())
        expected = {name: gradient.astype(np.float64) for name, gradient in expected.items()}
        cases.assert_gradients_close(_backward(inputs, _d_out()), expected, "float32")

    @parameterized.named_parameters(("first", np.s_[:64]), ("last", np.s_[64:]))
    def test_whole_tile_without_a_key_changes_nothing(self, tile):
        inputs = _inputs() | {"mask": np.ones(129, bool)}
        inputs["mask"][tile] = False
        kept = _inputs() | {name: _inputs()[name][:, inputs["mask"]] for name in ("key", "value")}
        expected = reference.forward(reference.Problem(**kept))
        for actual, wanted, name in zip(_forward(inputs), expected, ("out", "lse"), strict=True):
            cases.assert_close(actual, wanted, cases.tolerance(name, "float32"))


class LogSumExpTest(parameterized.TestCase):
    """Difference 2. That it is exact in every dtype is in test_forward.py."""

    @parameterized.parameters(*cases.DTYPES)
    def test_dtype_is_float32(self, dtype):
        _, lse = jax.eval_shape(
            functools.partial(dhp_jax.dot_product_attention, return_residual=True),
            *cases.make_inputs(_CASE, dtype).values(),
        )
        assert lse.dtype == jnp.float32

    def test_shape_is_that_of_query_without_channels(self):
        _, lse = _forward(_inputs())
        assert lse.shape == (3, 97, 4)


_LENGTHS = {
    "query_seq_lengths": np.array([60, 97, 0], np.int32),
    "key_value_seq_lengths": np.array([129, 64, 31], np.int32),
}
_PAST_QUERY_LENGTH = np.arange(97) >= _LENGTHS["query_seq_lengths"][:, None]  # [B, T]
_PAST_KEY_LENGTH = np.arange(129) >= _LENGTHS["key_value_seq_lengths"][:, None]  # [B, S]
_NOT_FINITE = (np.nan, np.inf, -np.inf)


class PastLengthTest(parameterized.TestCase):
    """Difference 4: what lies past a sequence length is not seen."""

    def _changed(self, value):
        return _inputs(
            query=(_PAST_QUERY_LENGTH, value),
            key=(_PAST_KEY_LENGTH, value),
            value=(_PAST_KEY_LENGTH, value),
        )

    @parameterized.parameters(*_NOT_FINITE)
    def test_values_change_no_bit_forward(self, value):
        expected = _forward(_inputs() | _LENGTHS)
        for actual, wanted in zip(_forward(self._changed(value) | _LENGTHS), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)

    @parameterized.parameters(*_NOT_FINITE)
    def test_values_change_no_bit_backward(self, value):
        d_out = _d_out()
        expected = _backward(_inputs() | _LENGTHS, d_out)
        d_out[_PAST_QUERY_LENGTH] = value
        for name, gradient in _backward(self._changed(value) | _LENGTHS, d_out).items():
            np.testing.assert_array_equal(gradient, expected[name])

    @parameterized.product(value=_NOT_FINITE, backward=("attention_bwd", "attention_bwd_bias"))
    def test_cotangent_of_log_sum_exp_changes_no_bit(self, value, backward):
        inputs = _inputs(_BIAS_CASE) | _LENGTHS
        options = spec.AttentionSpec.from_arguments(
            spec.Arguments(**inputs), scale=None, is_causal=False, local_window_size=None
        ).options
        operands = [jnp.asarray(inputs[name])[None] for name in spec.Arguments._fields if name in inputs]
        out, *statistics = primitive.call_native("attention_fwd", options, operands)
        d_lse = cases.make_cotangents(_CASE, "float32")[1]

        def gradients(d_lse):
            cotangents = (_d_out()[None], d_lse[None])
            return primitive.call_native(backward, options, [*operands, out, *statistics, *cotangents])[:-1]

        expected = gradients(d_lse)
        d_lse[_PAST_QUERY_LENGTH] = value
        for actual, wanted in zip(gradients(d_lse), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)

    def test_gradients_past_length_are_0(self):
        gradients = _backward(self._changed(np.nan) | _LENGTHS, _d_out())
        np.testing.assert_array_equal(gradients["query"][_PAST_QUERY_LENGTH], 0)
        np.testing.assert_array_equal(gradients["key"][_PAST_KEY_LENGTH], 0)
        np.testing.assert_array_equal(gradients["value"][_PAST_KEY_LENGTH], 0)


class LengthTest(parameterized.TestCase):
    """Lengths are secret: none of their values is an error."""

    @parameterized.product(
        name=("query_seq_lengths", "key_value_seq_lengths"),
        lengths=((0, 0, 0), (-1, -(2**31), 5), (2**31 - 1, 64, 65), (97, 129, 130)),
    )
    def test_any_value_is_compared(self, name, lengths):
        inputs = _inputs() | {name: np.array(lengths, np.int32)}
        out, _ = _forward(inputs)
        expected, _ = reference.forward(reference.Problem(**inputs))
        cases.assert_close(out, expected, cases.tolerance("out", "float32"))

    @parameterized.product(
        name=("query_seq_lengths", "key_value_seq_lengths"),
        dtype=("int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"),
    )
    def test_any_integer_type_is_compared_by_value(self, name, dtype):
        limits = np.iinfo(dtype)
        lengths = np.array([limits.min, 50, limits.max], dtype)
        expected, _ = _forward(_inputs() | {name: np.clip(lengths, -1, 2**31 - 1).astype(np.int32)})
        with jax.enable_x64(True):
            out, _ = _forward(_inputs() | {name: lengths})
        np.testing.assert_array_equal(out, expected)

    def test_zero_lengths_have_zero_gradients(self):
        zeros = np.zeros(3, np.int32)
        gradients = _backward(_inputs(_BIAS_CASE) | {"key_value_seq_lengths": zeros}, _d_out())
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, np.zeros_like(gradient), name)


_MASK = np.arange(129) != 70  # hides one key
_ODD_VALUES = (
    ("nan_in_query", {"query": (np.s_[1, 5, 2], np.nan)}, {}),
    ("nan_in_key", {"key": (np.s_[1, 70, 1, 3], np.nan)}, {}),
    ("nan_in_value", {"value": (np.s_[1, 70, 1, 3], np.nan)}, {}),
    ("nan_in_bias", {"bias": (np.s_[0, 2, 5, 70], np.nan)}, {}),
    ("nan_in_masked_key", {"key": (np.s_[1, 70, 1, 3], np.nan)}, {"mask": _MASK}),
    ("nan_in_masked_value", {"value": (np.s_[1, 70, 1, 3], np.nan)}, {"mask": _MASK}),
    ("nan_in_masked_bias", {"bias": (np.s_[0, 2, 5, 70], np.nan)}, {"mask": _MASK}),
    ("infinity_in_query", {"query": (np.s_[1, 5, 2, 3], np.inf)}, {}),
    ("infinity_in_key", {"key": (np.s_[1, 70, 1, 3], np.inf)}, {}),
    ("infinity_in_value", {"value": (np.s_[1, 70, 1, 3], np.inf)}, {}),
    ("infinity_in_bias", {"bias": (np.s_[0, 2, 5, 70], np.inf)}, {}),
    ("infinity_in_masked_value", {"value": (np.s_[1, 70, 1, 3], np.inf)}, {"mask": _MASK}),
    ("minus_infinity_in_bias", {"bias": (np.s_[0, 2, 5, 70], -np.inf)}, {}),
    ("minus_infinity_in_value", {"value": (np.s_[1, 70, 1, 3], -np.inf)}, {}),
)


class NotFiniteTest(parameterized.TestCase):
    """NaN and infinity spread as in jax.nn, and no further."""

    def _inputs(self, odd_value, arrays):
        return _inputs(_BIAS_CASE, **odd_value) | arrays

    @parameterized.named_parameters(*_ODD_VALUES)
    def test_output_is_that_of_reference(self, odd_value, arrays):
        inputs = self._inputs(odd_value, arrays)
        out, _ = _forward(inputs)
        expected, _ = reference.forward(reference.Problem(**inputs))
        cases.assert_close(out, expected, cases.tolerance("out", "float32"))

    @parameterized.named_parameters(*_ODD_VALUES)
    def test_output_is_that_of_jax_nn(self, odd_value, arrays):
        inputs = self._inputs(odd_value, arrays)
        out, _ = _forward(inputs)
        expected, _ = cases.run_forward(cases.oracle, inputs)
        cases.assert_close(out, expected.astype(np.float64), 2 * cases.tolerance("out", "float32"))

    @parameterized.named_parameters(*_ODD_VALUES)
    def test_gradients_are_those_of_reference(self, odd_value, arrays):
        inputs = self._inputs(odd_value, arrays)
        expected = cases.reference_backward(inputs, _d_out())
        cases.assert_gradients_close(_backward(inputs, _d_out()), expected, "float32")

    # But for an infinite query: its scores of -inf count as masked for us, so its NaN does not reach their keys.
    @parameterized.named_parameters(*(odd for odd in _ODD_VALUES if odd[0] != "infinity_in_query"))
    def test_gradients_are_those_of_jax_nn(self, odd_value, arrays):
        inputs = self._inputs(odd_value, arrays)
        expected = cases.run_backward(cases.oracle, inputs, _d_out())
        expected = {name: gradient.astype(np.float64) for name, gradient in expected.items()}
        cases.assert_gradients_close(_backward(inputs, _d_out()), expected, "float32")

    def test_nan_in_query_reaches_its_row_only(self):
        out, lse = _forward(_inputs(query=(np.s_[1, 5, 2, 3], np.nan)))
        reached = np.zeros(lse.shape, bool)
        reached[1, 5, 2] = True
        np.testing.assert_array_equal(np.isnan(lse), reached)
        np.testing.assert_array_equal(np.isnan(out), np.broadcast_to(reached[..., None], out.shape))

    def test_nan_in_key_reaches_the_rows_that_see_it(self):
        out, _ = _forward(_inputs(key=(np.s_[1, 70, 1], np.nan)), is_causal=True)
        reached = np.zeros(out.shape, bool)
        reached[1, 70:, 2:] = True
        np.testing.assert_array_equal(np.isnan(out), reached)

    def test_nan_in_cotangent_reaches_gradients_as_in_reference(self):
        d_out = _d_out()
        d_out[1, 5, 2, 3] = np.nan
        expected = cases.reference_backward(_inputs(_BIAS_CASE), d_out)
        cases.assert_gradients_close(_backward(_inputs(_BIAS_CASE), d_out), expected, "float32")


class HugeScoreTest(parameterized.TestCase):
    """Scores far past the range of exp. Small integers as inputs, so that float32 scores are exact too."""

    def _integers(self, factor):
        rng = np.random.default_rng(0)
        shapes = {"query": (3, 97, 4, 8), "key": (3, 129, 2, 8)}
        inputs = {name: rng.integers(-9, 10, shape).astype(np.float32) for name, shape in shapes.items()}
        return inputs | {"query": factor * inputs["query"], "value": _inputs()["value"]}

    @parameterized.parameters(1.0, 16.0, 4096.0)
    def test_output_is_that_of_reference(self, factor):
        inputs = self._integers(factor)
        out, _ = _forward(inputs, scale=1.0)
        expected, _ = reference.forward(reference.Problem(**inputs, scale=1.0))
        cases.assert_close(out, expected, cases.tolerance("out", "float32"))

    @parameterized.parameters(1.0, 16.0, 4096.0)
    def test_log_sum_exp_is_that_of_reference(self, factor):
        inputs = self._integers(factor)
        _, lse = _forward(inputs, scale=1.0)
        _, expected = reference.forward(reference.Problem(**inputs, scale=1.0))
        cases.assert_close(lse, expected, cases.tolerance("lse", "float32"))

    @parameterized.parameters(1.0, 16.0, 4096.0)
    def test_gradients_are_those_of_reference(self, factor):
        inputs = self._integers(factor)
        expected = cases.reference_backward(inputs, _d_out(), scale=1.0)
        cases.assert_gradients_close(_backward(inputs, _d_out(), scale=1.0), expected, "float32")

    def test_score_that_overflows_gives_nan_in_its_row_only(self):
        inputs = _inputs(query=(np.s_[1, 5, 2], 1e30), key=(np.s_[:, 70], 1e30))
        out, lse = _forward(inputs)
        d_query = _backward(inputs, _d_out())["query"]
        reached = np.zeros(lse.shape, bool)
        reached[1, 5, 2] = True
        for result in (out, lse[..., None], d_query):
            np.testing.assert_array_equal(np.isnan(result).any(-1), reached)

    def test_score_that_overflows_below_takes_no_part(self):
        inputs = _inputs(query=(np.s_[1, 5, 2], 1e30), key=(np.s_[:], -1e30))
        out, lse = _forward(inputs)
        d_query = _backward(inputs, _d_out())["query"]
        np.testing.assert_array_equal(lse[1, 5, 2], -np.inf)
        np.testing.assert_array_equal(out[1, 5, 2], 0)
        np.testing.assert_array_equal(d_query[1, 5, 2], 0)


class SubnormalTest(parameterized.TestCase):
    @parameterized.parameters("float32", "bfloat16")
    def test_float32_subnormals_count_as_0(self, dtype):
        inputs = _inputs(dtype=dtype, value=(np.s_[:], 1e-39))
        np.testing.assert_array_equal(_forward(inputs)[0], 0)

    def test_float16_subnormals_keep_their_values(self):
        smallest = np.float16(2**-24)
        out, _ = _forward(_inputs(dtype="float16", value=(np.s_[:], smallest)))
        np.testing.assert_array_equal(out, np.full_like(out, smallest))


_EMPTY_SIZES = ({"B": 0}, {"T": 0}, {"S": 0}, {"N": 0}, {"T": 0, "S": 0})
_FEATURES = (
    {},
    {"is_causal": True, "window": (3, 5)},
    {"bias": "bnts", "mask": "bnts"},
    {"bias": "", "mask": ""},
    {"query_lengths": True, "key_value_lengths": True},
)


class EmptyArrayTest(parameterized.TestCase):
    """A size of 0 on any axis but the channels."""

    def _case(self, sizes, features):
        return cases.Case("empty", **({"B": 2, "T": 33, "S": 65, "N": 4, "K": 2, "D": 8} | sizes | features))

    @parameterized.product(sizes=_EMPTY_SIZES, features=_FEATURES)
    def test_forward_is_that_of_reference(self, sizes, features):
        case = self._case(sizes, features)
        inputs = cases.make_inputs(case, "float32")
        expected = reference.forward(reference.Problem(**inputs, **case.options))
        for actual, wanted in zip(_forward(inputs, **case.options), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)

    @parameterized.product(sizes=_EMPTY_SIZES, features=_FEATURES)
    def test_gradients_are_zeros(self, sizes, features):
        case = self._case(sizes, features)
        inputs = cases.make_inputs(case, "float32")
        d_out, _ = cases.make_cotangents(case, "float32")
        for name, gradient in _backward(inputs, d_out, **case.options).items():
            np.testing.assert_array_equal(gradient, np.zeros_like(inputs[name]), name)
