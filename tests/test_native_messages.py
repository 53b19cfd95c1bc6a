"""What reaches the custom call past Python's checks is refused with a message, too."""

import jax
import numpy as np
import pytest
from absl.testing import parameterized
from said import assert_says

from dhp_jax import ffi

_QUERY = np.ones((1, 2, 5, 4, 8), np.float32)  # [V, B, T, N, D]
_KEY = np.ones((1, 2, 7, 2, 8), np.float32)
_OUT, _STATISTIC = (1, 2, 5, 4, 8), (1, 2, 5, 4)


def _native(*operands, name="attention_fwd", results=(_OUT, _STATISTIC, _STATISTIC), out_dtype=np.float32, **flags):
    """A custom call, without the checks that Python makes before it."""
    ffi.register_targets()  # else done by the first attention call, which this is not
    dtypes = (out_dtype, np.float32, np.float32, np.float32)
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(results, dtypes, strict=False)]
    attributes = {"scale": np.float32(1), "band_left": np.int64(5), "band_right": np.int64(7)}
    attributes |= dict.fromkeys(("has_bias", "has_mask", "has_query_lengths", "has_key_value_lengths"), False) | flags
    return jax.block_until_ready(jax.ffi.ffi_call(ffi.TARGETS[name], shapes)(*operands, **attributes))


class NativeMessageTest(parameterized.TestCase):
    """What reaches the custom call past Python, from an exported program say, is checked before it is used."""

    def test_right_call_is_taken(self):
        _native(_QUERY, _KEY, _KEY)

    @parameterized.named_parameters(
        ("too_few_operands", (_QUERY, _KEY), {}, ("no buffer for value",)),
        (
            "too_many_operands",
            (_QUERY, _KEY, _KEY, _KEY),
            {},
            ("4 buffers where 3 are expected",),
        ),
        (
            "rank",
            (_QUERY[0], _KEY, _KEY),
            {},
            ("query is float32[2,5,4,8]", "must have rank 5"),
        ),
        (
            "dtype",
            (_QUERY.astype(np.int32), _KEY, _KEY),
            {},
            ("query is int32[1,2,5,4,8]", "must be float32, bfloat16 or float16"),
        ),
        (
            "unequal_dtypes",
            (_QUERY, _KEY, _KEY.astype(np.float16)),
            {},
            ("value is float16[1,2,7,2,8]", "must be float32"),
        ),
        (
            "channels",
            tuple(array[..., :5] for array in (_QUERY, _KEY, _KEY)),
            {},
            ("query is float32[1,2,5,4,5]", "must be a multiple of 8 from 8 to 256"),
        ),
        (
            "heads",
            (_QUERY[:, :, :, :3], _KEY, _KEY),
            {},
            ("query is float32[1,2,5,3,8]", "must be a multiple of the heads of key float32[1,2,7,2,8]"),
        ),
        (
            "value_shape",
            (_QUERY, _KEY, _KEY[:, :, :6]),
            {},
            ("value is float32[1,2,6,2,8]", "axis 2 must be 7 to fit [1,2,7,2,8]"),
        ),
        (
            "bias_shape",
            (_QUERY, _KEY, _KEY, np.ones((1, 1, 4, 3, 7), np.float32)),
            {"has_bias": True},
            ("bias is float32[1,1,4,3,7]", "axis 3 must be 5 or 1 to fit [1,2,4,5,7]"),
        ),
        (
            "mask_dtype",
            (_QUERY, _KEY, _KEY, np.ones((1, 1, 1, 1, 7), np.float32)),
            {"has_mask": True},
            ("mask is float32[1,1,1,1,7]", "must be bool"),
        ),
        (
            "length_dtype",
            (_QUERY, _KEY, _KEY, np.ones((1, 2), np.float32)),
            {"has_query_lengths": True},
            ("query_seq_lengths is float32[1,2]", "must be int32"),
        ),
        (
            "too_few_results",
            (_QUERY, _KEY, _KEY),
            {"results": (_OUT, _STATISTIC)},
            ("no buffer for log_sum",),
        ),
        (
            "workspace_where_none_is_needed",
            (_QUERY, _KEY, _KEY),
            {"results": (_OUT, _STATISTIC, _STATISTIC, (7,))},
            ("4 buffers where 3 are expected",),
        ),
        (
            "workspace_size",
            tuple(np.ones((1, 2, length, 4, 8), np.float32).astype(np.float16) for length in (5, 600, 600)),
            {"results": (_OUT, _STATISTIC, _STATISTIC, (7,)), "out_dtype": np.float16},
            ("workspace is float32[7]", "axis 0 must be 2000 to fit [2000]"),
        ),
        (
            "out_shape",
            (_QUERY, _KEY, _KEY),
            {"results": ((1, 2, 6, 4, 8), _STATISTIC, _STATISTIC)},
            ("out is float32[1,2,6,4,8]", "axis 2 must be 5 to fit [1,2,5,4,8]"),
        ),
        (
            "out_dtype",
            (_QUERY, _KEY, _KEY),
            {"out_dtype": np.float16},
            ("out is float16[1,2,5,4,8]", "must have the dtype of query"),
        ),
        (
            "statistic_shape",
            (_QUERY, _KEY, _KEY),
            {"results": (_OUT, (1, 2, 4, 5), _STATISTIC)},
            ("row_max is float32[1,2,4,5]", "axis 2 must be 5 to fit [1,2,5,4]"),
        ),
    )
    def test_wrong_buffer(self, operands, results_and_flags, parts):
        with pytest.raises(jax.errors.JaxRuntimeError) as raised:
            _native(*operands, **results_and_flags)
        assert_says(str(raised.value), "INVALID_ARGUMENT: dhp_jax: ", *parts)

    def test_gradient_of_bias_without_bias(self):
        with pytest.raises(jax.errors.JaxRuntimeError, match="the gradient of bias needs a bias operand"):
            _native(_QUERY, _KEY, _KEY, name="attention_bwd_bias", results=((1, 2, 4, 5, 7),))
