"""Every error says what came, the rule, and the way out."""

import pathlib
import sys
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from said import assert_says

import dhp_jax
from dhp_jax import ffi

_QUERY = np.ones((2, 5, 4, 8), np.float32)
_KEY = np.ones((2, 7, 2, 8), np.float32)


def _call(query=_QUERY, key=_KEY, value=_KEY, bias=None, mask=None, **options):
    return dhp_jax.dot_product_attention(query, key, value, bias, mask, **options)


def _ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


class ArgumentMessageTest(parameterized.TestCase):
    @parameterized.named_parameters(
        (
            "implementation",
            TypeError,
            {"implementation": "cudnn"},
            ("implementation='cudnn' was passed", "one implementation for each platform", "Leave the argument out"),
        ),
        (
            "unknown_arguments",
            TypeError,
            {"window": 3, "dropout": 0.1},
            ("unknown argument dropout, window", "those of jax.nn.dot_product_attention", "Leave it out"),
        ),
        (
            "arguments_of_flax",
            TypeError,
            {"dropout_rate": 0.0, "deterministic": True, "broadcast_dropout": True},
            ("deterministic and dropout_rate came", "the arguments of jax.nn only", "dhp_jax.flax.AttentionFn()"),
        ),
        (
            "rank",
            ValueError,
            {"query": _ones(1, 2, 5, 4, 8)},
            ("query has shape (1, 2, 5, 4, 8)", "must be (B, length, heads, D)", "jax.vmap"),
        ),
        (
            "rank_of_one_head",
            ValueError,
            {"query": _ones(5, 8), "key": _ones(5, 8), "value": _ones(5, 8)},
            ("query has shape (5, 8)", "must be (B, length, heads, D)", "give missing ones the size 1"),
        ),
        (
            "no_array",
            TypeError,
            {"key": None},
            ("key has type NoneType", "must be an array", "Convert it with jax.numpy.asarray"),
        ),
        (
            "shape_for_an_array",
            TypeError,
            {"query": jax.ShapeDtypeStruct((2, 5, 4, 8), jnp.float32)},
            ("query has type ShapeDtypeStruct", "must be an array", "Convert it"),
        ),
        (
            "ragged_lists",
            TypeError,
            {"bias": [[1.0, 2.0], [3.0]]},
            ("bias has type list", "must be an array", "nested lists of numbers"),
        ),
        (
            "dtype_without_an_equal_in_jax",
            TypeError,
            {"mask": _ones(5, 7, dtype=">f4")},
            ("mask has type ndarray and dtype >f4", "must be an array of a dtype that JAX knows", "Convert it"),
        ),
        (
            "dtype",
            TypeError,
            {"value": _KEY.astype(np.int32)},
            ("value has dtype int32", "must be one of float32, bfloat16, float16", "Cast it"),
        ),
        (
            "unequal_dtypes",
            TypeError,
            {"key": _KEY.astype(np.float16)},
            ("dtypes float32, float16 and float32", "must be equal", "Cast them"),
        ),
        (
            "key_and_value_shapes",
            ValueError,
            {"value": _ones(2, 7, 2, 16)},
            ("key has shape (2, 7, 2, 8) and value (2, 7, 2, 16)", "must be equal"),
        ),
        (
            "batch_sizes",
            ValueError,
            {"query": _ones(3, 5, 4, 8)},
            ("query has shape (3, 5, 4, 8) and key (2, 7, 2, 8)", "batch sizes and head dimensions", "must be equal"),
        ),
        (
            "channels_of_query_and_key",
            ValueError,
            {"query": _ones(2, 5, 4, 16)},
            ("query has shape (2, 5, 4, 16) and key (2, 7, 2, 8)", "batch sizes and head dimensions", "must be equal"),
        ),
        (
            "uneven_heads",
            ValueError,
            {"query": _ones(2, 5, 3, 8)},
            ("3 query heads cannot be shared evenly by 2 key/value heads", "make N a multiple of K"),
        ),
        (
            "no_key_heads",
            ValueError,
            {"key": _ones(2, 7, 0, 8), "value": _ones(2, 7, 0, 8)},
            ("4 query heads cannot be shared evenly by 0 key/value heads", "both at least 1"),
        ),
        (
            "too_many_channels",
            ValueError,
            {"query": _ones(2, 5, 4, 257), "key": _ones(2, 7, 2, 257), "value": _ones(2, 7, 2, 257)},
            ("head dimension is 257", "must be from 1 to 256", "Use more heads of fewer channels"),
        ),
        (
            "no_channels",
            ValueError,
            {"query": _ones(2, 5, 4, 0), "key": _ones(2, 7, 2, 0), "value": _ones(2, 7, 2, 0)},
            ("head dimension is 0", "must be from 1 to 256"),
        ),
        (
            "bias_rank",
            ValueError,
            {"bias": _ones(1, 1, 4, 5, 7)},
            ("bias has 5 axes (shape (1, 1, 4, 5, 7))", "at most 4 and broadcast to (B, N, T, S)"),
        ),
        (
            "mask_rank",
            ValueError,
            {"mask": _ones(1, 1, 4, 5, 7, dtype=bool)},
            ("mask has 5 axes (shape (1, 1, 4, 5, 7))", "at most 4 and broadcast to (B, N, T, S)"),
        ),
        (
            "bias_shape",
            ValueError,
            {"bias": _ones(4, 7, 5)},
            ("bias has shape (1, 4, 7, 5)", "(B, N, T, S) = (2, 4, 5, 7)", "give every axis its full size or 1"),
        ),
        (
            "mask_shape",
            ValueError,
            {"mask": _ones(3, 1, 1, 7, dtype=bool)},
            ("mask has shape (3, 1, 1, 7)", "(B, N, T, S) = (2, 4, 5, 7)", "give every axis its full size or 1"),
        ),
        (
            "bias_dtype",
            TypeError,
            {"bias": _ones(5, 7, dtype=bool)},
            ("bias has dtype bool", "must be floating point", "pass a boolean mask as mask"),
        ),
        (
            "bias_of_8_bits",
            TypeError,
            {"bias": jnp.ones((5, 7), jnp.float8_e4m3fn)},
            ("bias has dtype float8_e4m3fn", "must be floating point: float32, bfloat16, float16, float64", "Cast it"),
        ),
        (
            "mask_dtype",
            TypeError,
            {"mask": _ones(5, 7)},
            ("mask has dtype float32", "must be bool", "Pass an additive mask as bias"),
        ),
        (
            "length_dtype",
            TypeError,
            {"query_seq_lengths": _ones(2)},
            ("query_seq_lengths has dtype float32", "must be an integer type", "Cast it"),
        ),
        (
            "length_shape",
            ValueError,
            {"key_value_seq_lengths": _ones(2, 1, dtype=np.int32)},
            ("key_value_seq_lengths has shape (2, 1)", "must be (B,) = (2,)", "one length for each batch element"),
        ),
        (
            "scale",
            TypeError,
            {"scale": np.ones(2)},
            ("scale is array([1., 1.])", "public and must be a number known while tracing", "Multiply the query"),
        ),
        (
            "window_of_three",
            TypeError,
            {"local_window_size": (3, 4, 5)},
            ("local_window_size is (3, 4, 5)", "must be an int or a pair of ints", "as mask"),
        ),
        (
            "window_of_floats",
            TypeError,
            {"local_window_size": (3, 2.5)},
            ("local_window_size is (3, 2.5)", "must be an int or a pair of ints", "as mask"),
        ),
    )
    def test_wrong_argument(self, error, arguments, parts):
        with pytest.raises(error) as raised:
            _call(**arguments)
        assert_says(str(raised.value), "dot_product_attention: ", *parts)

    @parameterized.named_parameters(
        ("scale", "scale", ("scale is ", "must be a number known while tracing", "Multiply the query instead")),
        ("is_causal", "is_causal", ("is_causal is ", "must be a bool known while tracing", "secret as mask")),
        ("window", "local_window_size", ("local_window_size is ", "known while tracing", "secret as mask")),
        ("residual", "return_residual", ("return_residual is ", "must be a bool known while tracing", "Leave it out")),
    )
    def test_traced_option(self, name, parts):
        with pytest.raises(TypeError) as raised:
            jax.jit(lambda option: _call(**{name: option}))(1)
        assert_says(str(raised.value), "dot_product_attention: ", *parts)

    @parameterized.named_parameters(
        ("text_as_scale", {"scale": "big"}, ("scale is 'big'", "must be a number")),
        ("text_of_a_number_as_scale", {"scale": "0.5"}, ("scale is '0.5'", "must be a number")),
        ("complex_scale", {"scale": np.complex64(1)}, ("scale is np.complex64", "must be a number")),
        ("array_as_is_causal", {"is_causal": np.ones(2, bool)}, ("is_causal is array", "must be a bool")),
        ("text_as_is_causal", {"is_causal": "False"}, ("is_causal is 'False'", "must be a bool")),
        ("array_as_residual", {"return_residual": np.ones(2, bool)}, ("return_residual is array", "must be a bool")),
    )
    def test_option_of_another_kind(self, arguments, parts):
        with pytest.raises(TypeError) as raised:
            _call(**arguments)
        assert_says(str(raised.value), "dot_product_attention: ", *parts)

    @parameterized.parameters(np.inf, -np.inf, np.nan, 1e39, 10**400)
    def test_scale_that_float32_does_not_hold(self, scale):
        with pytest.raises(ValueError, match="scale is ") as raised:
            _call(scale=scale)
        assert_says(str(raised.value), "dot_product_attention: ", "must be finite in float32", "mask or bias")

    @parameterized.named_parameters(
        ("many_lines", "scale", lambda: np.ones((9, 9))),
        ("long_text", "implementation", lambda: "x" * 9999),
        ("more_digits_than_python_writes", "implementation", lambda: 10**5000),
        ("more_digits_than_python_writes_in_a_pair", "local_window_size", lambda: (10**5000, None)),
    )
    def test_option_is_shown_on_one_short_line(self, name, make_value):
        with pytest.raises(TypeError) as raised:
            _call(**{name: make_value()})
        assert len(str(raised.value)) < 400
        assert "\n" not in str(raised.value)

    def test_only_the_batch_size_may_be_symbolic(self):
        lengths = jax.export.symbolic_shape("s, t")
        query = jax.ShapeDtypeStruct((2, lengths[1], 4, 8), jnp.float32)
        key = jax.ShapeDtypeStruct((2, lengths[0], 2, 8), jnp.float32)
        with pytest.raises(ValueError, match="has shape") as raised:
            jax.export.export(jax.jit(_call))(query, key, key)
        parts = ("query has shape (2, t, 4, 8)", "must be known while tracing", "Export a program for each shape")
        assert_says(str(raised.value), "dot_product_attention: ", *parts)

    def test_sequence_too_long(self):
        key = jax.ShapeDtypeStruct((2, 2**31, 2, 8), jnp.float32)
        with pytest.raises(ValueError, match="a sequence has length") as raised:
            jax.eval_shape(_call, _QUERY, key, key)
        assert_says(str(raised.value), "2147483648", "must be at most 2147482623", "Split the sequence")

    @parameterized.named_parameters(
        ("dtype", TypeError, {"dtype": "int8"}, ("dtype is 'int8'", "must be one of float32", "Cast")),
        ("size", ValueError, {"batch": -1}, ("batch is -1", "must be at least 0", "Take it from")),
        ("scale", ValueError, {"scale": np.nan}, ("scale is nan", "must be finite", "mask or bias")),
        (
            "bias_rank",
            ValueError,
            {"bias_shape": (5, 7)},
            ("bias has shape (5, 7)", "does not", "give every"),
        ),
    )
    def test_spec_made_by_hand(self, error, changes, parts):
        sizes = {"batch": 2, "query_length": 5, "key_length": 7, "channels": 8}
        heads = {"num_query_heads": 4, "num_key_value_heads": 2}
        with pytest.raises(error) as raised:
            dhp_jax.AttentionSpec(**({"dtype": "float32", "scale": 1.0} | sizes | heads | changes))
        assert_says(str(raised.value), "dot_product_attention: ", *parts)

    def test_unknown_public_name(self):
        with pytest.raises(AttributeError) as raised:
            _ = dhp_jax.attention_of_another_kind
        assert_says(str(raised.value), "no attribute 'attention_of_another_kind'", "it has", "dot_product_attention")


def _sum(query):
    return _call(query).sum()


class DerivativeMessageTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("gradient_of_gradient", jax.grad(lambda query: jax.grad(_sum)(query).sum())),
        ("hessian", jax.hessian(_sum)),
        ("forward_mode_of_gradient", lambda query: jax.jvp(jax.grad(_sum), (query,), (query,))),
        ("forward_mode", lambda query: jax.jvp(_sum, (query,), (query,))),
        ("forward_jacobian", jax.jacfwd(_sum)),
    )
    def test_unsupported_derivative(self, differentiate):
        with pytest.raises(NotImplementedError) as raised:
            differentiate(_QUERY)
        parts = ("has one reverse-mode derivative", "forward mode", "second", "Use jax.nn.dot_product_attention there")
        assert_says(str(raised.value), "dhp_jax.dot_product_attention ", *parts)


class PlatformMessageTest(parameterized.TestCase):
    @parameterized.product(platform=("tpu", "rocm"), with_gradient=(False, True))
    def test_other_platform(self, platform, with_gradient):
        function = jax.grad(_sum) if with_gradient else _sum
        traced = jax.jit(lambda query: function(query)).trace(_QUERY)
        with pytest.raises(NotImplementedError) as raised:
            traced.lower(lowering_platforms=(platform,))
        parts = (f"platform {platform}", "cuda and cpu only", "Use jax.nn.dot_product_attention there")
        assert_says(str(raised.value), "dhp_jax: attention_fwd was lowered for ", *parts)


@pytest.fixture
def without_cuda_kernels(monkeypatch):
    monkeypatch.setattr(ffi, "native", lambda: types.SimpleNamespace(CUDA_ARCHITECTURES=""))


class TestInstallationMessages:
    @pytest.mark.usefixtures("without_cuda_kernels")
    def test_gpu_without_kernels(self, monkeypatch):
        monkeypatch.setattr(ffi, "_has_gpu", lambda: True)
        traced = jax.jit(lambda query: _sum(query)).trace(_QUERY)
        with pytest.raises(NotImplementedError) as raised:
            traced.lower(lowering_platforms=("cuda",))
        parts = (
            "no CUDA kernels, and JAX has a GPU",
            "no silent fallback",
            "Reinstall with DHP_CUDA=1",
            "default_device",
        )
        assert_says(str(raised.value), "dhp_jax: ", *parts)

    @pytest.mark.usefixtures("without_cuda_kernels")
    def test_program_for_cuda_may_be_lowered_where_no_gpu_is(self, monkeypatch):
        monkeypatch.setattr(ffi, "_has_gpu", lambda: False)
        lowered = jax.jit(lambda query: _sum(query)).trace(_QUERY).lower(lowering_platforms=("cuda",))
        assert "dhp_attention_fwd" in lowered.as_text()

    @pytest.mark.parametrize("built", [(0, 9), (1, 0)])
    def test_built_for_another_ffi(self, built):
        with pytest.raises(ImportError) as raised:
            ffi.check_ffi_version(built, (0, 3))
        received = f"built on XLA FFI {built[0]}.{built[1]}, and the installed jaxlib has 0.3"
        assert_says(str(raised.value), received, "same major and at least the same minor", "Upgrade jax", "Reinstall")

    @pytest.mark.parametrize("built", [(0, 3), (0, 1)])
    def test_built_for_this_ffi_or_an_older_one_is_taken(self, built):
        ffi.check_ffi_version(built, (0, 3))

    def test_compiled_module_is_checked_before_use(self, monkeypatch):
        monkeypatch.setattr(ffi, "installed_ffi_version", lambda: (0, 0))
        with pytest.raises(ImportError, match="built on XLA FFI"):
            ffi.native.__wrapped__()

    def test_compiled_module_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "dhp_jax._native", None)
        with pytest.raises(ImportError) as raised:
            ffi.native.__wrapped__()
        assert_says(str(raised.value), "compiled module dhp_jax._native does not load", "Reinstall it from source")

    def test_compiled_module_is_missing_because_the_source_tree_hides_the_installed_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "dhp_jax._native", None)
        sources = pathlib.Path(__file__).parent.parent / "dhp_jax"
        monkeypatch.setattr(ffi, "__file__", str(sources / "ffi.py"))
        with pytest.raises(ImportError) as raised:
            ffi.native.__wrapped__()
        assert_says(str(raised.value), f"source tree {sources}", "run from another folder")
