"""dhp_jax.flax.AttentionFn itself: arrays of any rank and dtype, what it shares and copies, and what it refuses."""

import functools
import inspect
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from absl.testing import parameterized
from flax_modules import (
    CHANNELS,
    HEADS,
    ONE_BATCH,
    OWN,
    each_library,
    linen,
    linen_module,
    make_mask,
    nnx,
    nnx_module,
    normal,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from programs import collectives, copied_shapes

from dhp_jax.flax import AttentionFn


class ArrayTest(parameterized.TestCase):
    """The function itself, without a module."""

    query, key, value = (normal(2, 3, n, HEADS, CHANNELS, seed=n) for n in (5, 7, 7))
    bias = normal(2, 3, HEADS, 5, 7, seed=9)

    @parameterized.parameters(*OWN)
    def test_bias_and_mask_by_position(self, library):
        arguments = (self.query, self.key, self.value, self.bias, make_mask(2, 3, HEADS, 5, 7))
        np.testing.assert_allclose(AttentionFn()(*arguments), OWN[library](*arguments), rtol=1e-5, atol=1e-6)

    @parameterized.product(shape=((2, 1, 1, 5, 7), (1, 3, HEADS, 1, 1), (HEADS, 5, 1), (7,)))
    def test_gradient_of_a_shared_bias(self, shape):
        def gradient(attend, bias):
            return jax.grad(lambda bias: jnp.sum(attend(self.query, self.key, self.value, bias) ** 2))(bias)

        def own(query, key, value, bias):
            return linen.dot_product_attention(query, key, value, jnp.broadcast_to(bias, self.bias.shape))

        bias = normal(*shape)
        np.testing.assert_allclose(gradient(AttentionFn(), bias), gradient(own, bias), rtol=1e-5, atol=2e-5)

    @parameterized.product(
        dtypes=(("bfloat16", "float32"), ("float16", "bfloat16"), ("bfloat16", "bfloat16"), ("int32", "int32")),
        dtype=(None, "float32", "bfloat16"),
    )
    def test_dtype_of_the_output_is_that_of_flax(self, dtypes, dtype):
        query, key = (jnp.asarray(x, of) for x, of in zip((self.query, self.key), dtypes, strict=True))
        shape, expected = (
            jax.eval_shape(functools.partial(attend, dtype=dtype), query, key, key)
            for attend in (AttentionFn(), nnx.dot_product_attention)
        )
        assert (shape.shape, shape.dtype) == (expected.shape, expected.dtype)

    def test_inputs_are_cast_before_anything_else(self):
        narrow = [jnp.asarray(x, "bfloat16") for x in (self.query, self.key, self.value)]
        ours = AttentionFn()(self.query, self.key, self.value, dtype="bfloat16")
        np.testing.assert_array_equal(ours, AttentionFn()(*narrow))

    def test_row_without_a_key_is_0(self):
        mask = np.arange(5)[:, None] != 2
        out = AttentionFn()(self.query, self.key, self.value, mask=np.broadcast_to(mask, (5, 7)))
        np.testing.assert_array_equal(np.any(out, axis=(0, 1, 3, 4)), mask[:, 0])

    def test_rows_past_a_query_length_are_0(self):
        lengths = np.array([[5, 0, 3], [1, 2, 9]])
        whole = np.asarray(AttentionFn()(self.query, self.key, self.value))
        out = AttentionFn()(self.query, self.key, self.value, query_seq_lengths=lengths)
        within = np.arange(5) < lengths[..., None]
        np.testing.assert_array_equal(out, np.where(within[..., None, None], whole, 0))

    @parameterized.product(
        dtype=("int8", "int32", "int64", "uint64"), name=("query_seq_lengths", "key_value_seq_lengths")
    )
    def test_any_length_is_compared_by_value(self, dtype, name):
        limits = np.iinfo(dtype)
        lengths = np.array([[limits.min, 3, limits.max], [limits.max, 0, 2]], dtype)
        out, expected = (
            AttentionFn()(self.query, self.key, self.value, **{name: array})
            for array in (lengths, np.clip(lengths, 0, 9).astype(np.int32))
        )
        np.testing.assert_array_equal(out, expected)

    @parameterized.parameters((2, 1, 1, 5, 7), (1, 3, HEADS, 5, 7), (HEADS, 1, 7), (1, 1, 1, 5, 1))
    def test_shared_mask_is_not_copied(self, *shape):
        def lowered(expand):
            def attend(mask):
                return AttentionFn()(self.query, self.key, self.value, mask=expand(mask))

            return jax.jit(attend).lower(make_mask(*shape)).as_text()

        assert copied_shapes(lowered(lambda mask: mask)) == []
        whole = (2, 3, HEADS, 5, 7)
        assert copied_shapes(lowered(lambda mask: jnp.broadcast_to(mask, whole))) == [whole]  # the control

    @parameterized.product(
        mode=tuple(meshes.MODES.values()),
        spec_and_communication=((P("x", "y"), set()), (P("x", None, "y"), {"all-gather"})),  # the second: the control
    )
    def test_sharded_batch_axes_need_no_communication(self, mode, spec_and_communication):
        spec, communication = spec_and_communication
        mesh = meshes.make_mesh(mode)
        query = normal(2, 4, 8, HEADS, CHANNELS)
        mask = make_mask(1, 4, 1, 8, 8)

        def loss(query):
            return jnp.sum(AttentionFn()(query, query, query, mask=mask) ** 2)

        with jax.set_mesh(mesh):
            sharded = jax.device_put(query, NamedSharding(mesh, spec))
            compiled = jax.jit(lambda query: AttentionFn()(query, query, query, mask=mask)).lower(sharded).compile()
            assert collectives(compiled) == communication
            if not communication:
                assert collectives(jax.jit(jax.grad(loss)).lower(sharded).compile()) == set()

    def test_linen_drops_no_argument_of_its_function_in_silence(self):
        theirs, ours = (set(inspect.signature(f).parameters) for f in (linen.dot_product_attention, AttentionFn()))
        assert theirs - ours == {"einsum_dot_general"}  # which its modules do not pass

    def test_flax_is_not_imported(self):
        program = "import dhp_jax.flax, sys; print('flax' in sys.modules); import flax; print(flax.__name__)"
        result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
        assert result.stdout.split() == ["False", "flax"]

    def test_a_star_import_leaves_the_name_flax_alone(self):
        program = "from dhp_jax import *; import flax, dhp_jax; print(flax.__name__, dhp_jax.flax.__name__)"
        result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
        assert result.stdout.split() == ["flax", "dhp_jax.flax"]


class MessageTest(parameterized.TestCase):
    """What came, the rule, and the way out."""

    def _assert_says(self, error, parts, call):
        with pytest.raises(error, match=".*".join(re.escape(part) for part in ("AttentionFn: ", *parts))):
            call()

    @parameterized.named_parameters(
        *each_library(
            (
                "dropout",
                {"dropout_rate": 0.1, "deterministic": False},
                {},
                ("dropout_rate=0.1 came with deterministic=False", "never stored", "deterministic=True"),
            ),
            (
                "algorithm",
                {"precision": "BF16_BF16_F32"},
                {},
                ("precision='BF16_BF16_F32' came", "summed in float32", "Build the module with None"),
            ),
            ("weights", {}, {"sow_weights": True}, ("a module came", "never stored", "sow_weights=False")),
        ),
        (
            "linen_einsum_of_scores",
            "linen",
            {"qk_attn_weights_einsum_cls": lambda: jnp.einsum},
            {},
            ("qk_attn_weights_einsum", "no einsum can take the place", "Build the module without"),
        ),
        (
            "linen_einsum_of_values",
            "linen",
            {"attn_weights_value_einsum_cls": lambda: jnp.einsum},
            {},
            ("attn_weights_value_einsum came", "no einsum can take the place", "Build the module without"),
        ),
    )
    def test_wish_of_a_module(self, library, options, call, parts):
        if library == "nnx":
            module = nnx_module(AttentionFn(), **options)
            self._assert_says(NotImplementedError, parts, lambda: module(*ONE_BATCH, **call))
        else:
            module = linen_module(AttentionFn(), **options)
            rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            self._assert_says(NotImplementedError, parts, lambda: module.init(rngs, *ONE_BATCH, **call))

    @parameterized.named_parameters(
        (
            "unknown_argument",
            TypeError,
            {"sinks": 1, "input_positions": 2},
            ("unknown argument input_positions, sinks", "not dropped", "a function of your own"),
        ),
        (
            "batch_axes",
            ValueError,
            {"key": np.ones((3, 2, 7, 4, 8))},
            ("(2, 3, 5, 4, 8), (3, 2, 7, 4, 8) and (2, 3, 7, 4, 8)", "(batch..., length, heads, D)", "the same axes"),
        ),
        (
            "rank",
            ValueError,
            {"query": np.ones((5, 8)), "key": np.ones((7, 8)), "value": np.ones((7, 8))},
            ("(5, 8), (7, 8) and (7, 8)", "must be (batch..., length, heads, D)"),
        ),
        (
            "mask_shape",
            ValueError,
            {"mask": np.ones((2, 2, 1, 5, 7))},
            ("mask has shape (2, 2, 1, 5, 7)", "(batch..., N, T, S) = (2, 3, 4, 5, 7)", "its full size or 1"),
        ),
        (
            "bias_rank",
            ValueError,
            {"bias": np.ones((1, 2, 3, 4, 5, 7))},
            ("bias has shape (1, 2, 3, 4, 5, 7)", "(batch..., N, T, S) = (2, 3, 4, 5, 7)", "its full size or 1"),
        ),
        (
            "length_shape",
            ValueError,
            {"key_value_seq_lengths": np.ones((6,), int)},
            ("key_value_seq_lengths has shape (6,)", "(batch...) = (2, 3)", "one length for each sequence"),
        ),
    )
    def test_wrong_argument(self, error, arguments, parts):
        arrays = {"query": ArrayTest.query, "key": ArrayTest.key, "value": ArrayTest.value}
        self._assert_says(error, parts, lambda: AttentionFn()(**(arrays | arguments)))
