"""With dhp_jax.flax.AttentionFn, Flax's attention modules give the results they give with Flax's own function."""

import functools
import inspect

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax_modules import (
    CHANNELS,
    FEATURES,
    HEADS,
    NO_BATCH,
    ONE_BATCH,
    OWN,
    TWO_BATCHES,
    each_library,
    linen,
    linen_module,
    make_mask,
    nnx,
    nnx_module,
    normal,
)
from programs import native_calls

from dhp_jax.flax import AttentionFn

_NNX_PASSES_IS_CAUSAL = "is_causal" in inspect.signature(nnx.MultiHeadAttention.__call__).parameters

# Relative to the largest number of a result: how far apart two ways of rounding are after the same projections. Largest
# seen on the CPU: float32 2.7e-7, bfloat16 5.6e-3, float16 7.0e-4; most of it Flax's, which also rounds the weights.
_TOLERANCE = {"float32": 1e-6, "bfloat16": 1.2e-2, "float16": 1.5e-3}


def _nnx_function(attention_fn, **options):
    graph, _ = nnx.split(nnx_module(attention_fn, **options))
    return lambda parameters, inputs, **call: nnx.merge(graph, parameters)(*inputs, **call)


def _linen_function(attention_fn, **options):
    module = linen_module(attention_fn, **options)
    return lambda parameters, inputs, **call: module.apply(parameters, *inputs, **call)


_FUNCTION = {"nnx": _nnx_function, "linen": _linen_function}


@functools.lru_cache
def _parameters(library, options=()):
    if library == "nnx":
        return nnx.split(nnx_module(nnx.dot_product_attention, **dict(options)))[1]
    return linen_module(linen.dot_product_attention, **dict(options)).init(jax.random.key(0), normal(5, FEATURES))


def _run(library, attention_fn, inputs, options=(), **call):
    """The output of a module, and its gradients for parameters and inputs."""
    function = _FUNCTION[library](attention_fn, **dict(options))

    @jax.jit
    def run(parameters, inputs):
        out, pull_back = jax.vjp(lambda *arguments: function(*arguments, **call), parameters, inputs)
        return out, pull_back(jnp.asarray(normal(*out.shape, seed=1), out.dtype))

    out, gradients = run(_parameters(library, options), inputs)
    return np.asarray(out), [np.asarray(leaf) for leaf in jax.tree.leaves(gradients)]


def _assert_close(actual, expected, dtype="float32"):
    """Output and gradients, each relative to the largest number among their like."""
    for ours, theirs in ((actual[:1], expected[:1]), (actual[1], expected[1])):
        assert [x.dtype for x in ours] == [x.dtype for x in theirs]
        theirs = [x.astype(np.float64) for x in theirs]
        scale = max(np.abs(x).max() for x in theirs)
        for x, y in zip(ours, theirs, strict=True):
            cases.assert_close(x, y, _TOLERANCE[dtype], scale)


class ModuleTest(parameterized.TestCase):
    """Forward and gradients under jit, with the same parameters."""

    def _compare(self, library, inputs, options=(), dtype="float32", **call):
        ours = _run(library, AttentionFn(), inputs, options, **call)
        _assert_close(ours, _run(library, OWN[library], inputs, options, **call), dtype)

    @parameterized.named_parameters(
        *each_library(
            ("no_batch_axis", NO_BATCH),
            ("one_batch_axis", ONE_BATCH),
            ("two_batch_axes", TWO_BATCHES),
            ("three_batch_axes", (normal(2, 4, 3, 5, FEATURES), normal(2, 4, 3, 7, FEATURES, seed=3))),
            ("self_attention", ONE_BATCH[:1]),
        )
    )
    def test_without_mask(self, library, inputs):
        self._compare(library, inputs)

    @parameterized.named_parameters(
        *each_library(
            ("bool", ONE_BATCH, make_mask(3, HEADS, 5, 7)),
            ("float", ONE_BATCH, make_mask(3, 1, 5, 7).astype(np.float32)),
            ("int", ONE_BATCH, make_mask(3, 1, 1, 7).astype(np.int32)),
            ("of_pairs", ONE_BATCH, make_mask(5, 7)),
            ("without_batch_axis", NO_BATCH, make_mask(HEADS, 5, 7)),
            ("with_two_batch_axes", TWO_BATCHES, make_mask(2, 3, HEADS, 5, 7)),
        )
    )
    def test_with_mask(self, library, inputs, mask):
        self._compare(library, inputs, mask=mask)

    @parameterized.product(
        library=tuple(OWN), shape=((1, 3, 1, 5, 7), (2, 1, 1, 1, 7), (1, 1, HEADS, 5, 1), (3, 1, 1, 7))
    )
    def test_mask_shared_over_batch_axes(self, library, shape):
        mask = make_mask(*shape)
        ours = _run(library, AttentionFn(), TWO_BATCHES, mask=mask)
        whole = np.broadcast_to(mask, (2, 3, HEADS, 5, 7))  # nnx's function takes no axis of size 1 there
        _assert_close(ours, _run(library, OWN[library], TWO_BATCHES, mask=whole))

    @parameterized.named_parameters(
        *each_library(
            ("normalised", {"normalize_qk": True}),
            ("channels_5", {"qkv_features": 5 * HEADS}),
            ("precision", {"precision": jax.lax.Precision.HIGHEST}),
            ("precision_of_both", {"precision": ("high", "highest")}),
        ),
        ("nnx_dropout_switched_off", "nnx", {"dropout_rate": 0.3, "deterministic": True, "keep_rngs": False}),
        ("linen_dropout_switched_off", "linen", {"dropout_rate": 0.3, "deterministic": True}),
        ("nnx_two_heads_share_keys", "nnx", {"num_kv_heads": 2}),
        ("nnx_one_key_head", "nnx", {"num_kv_heads": 1}),
        ("linen_softmax_in_float32", "linen", {"force_fp32_for_softmax": True}),
    )
    def test_options_of_the_module(self, library, options):
        self._compare(library, ONE_BATCH, tuple(options.items()), mask=make_mask(3, 1, 5, 7))

    @parameterized.named_parameters(
        *each_library(
            ("activations", "bfloat16", "float32"),
            ("parameters", None, "bfloat16"),
            ("both", "bfloat16", "bfloat16"),
        ),
        ("linen_float16", "linen", "float16", "float32"),  # jax.nn, which nnx calls, has no float16 on the CPU
    )
    def test_dtypes_of_the_module(self, library, dtype, param_dtype):
        options = {"dtype": dtype and jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
        inputs = ONE_BATCH if dtype else tuple(x.astype(param_dtype) for x in ONE_BATCH)
        self._compare(library, inputs, tuple(options.items()), dtype or param_dtype, mask=make_mask(3, 1, 5, 7))

    @parameterized.parameters(*OWN)
    def test_control_a_changed_mask_is_seen(self, library):
        mask = make_mask(3, 1, 5, 7)
        expected = _run(library, OWN[library], ONE_BATCH, mask=mask)
        mask[2, 0, 4, 6] ^= True
        with pytest.raises(AssertionError, match="is off by"):
            _assert_close(_run(library, AttentionFn(), ONE_BATCH, mask=mask), expected, "bfloat16")

    @parameterized.parameters(*OWN)
    def test_module_runs_the_native_call(self, library):
        def calls(attention_fn):
            function = _FUNCTION[library](attention_fn)
            return native_calls(jax.jit(function).lower(_parameters(library), TWO_BATCHES).as_text())

        assert calls(AttentionFn()) == ["fwd"]
        assert calls(OWN[library]) == []


class OptionTest(parameterized.TestCase):
    """The options of an AttentionFn, and is_causal of an nnx module, against Flax's function with a mask."""

    @parameterized.named_parameters(
        *each_library(
            ("causal", {"is_causal": True}, lambda t, s: s <= t),
            ("window", {"local_window_size": (2, 1)}, lambda t, s: (t - 2 <= s) & (s <= t + 1)),
            ("causal_window", {"is_causal": True, "local_window_size": 3}, lambda t, s: (t - 3 <= s) & (s <= t)),
        )
    )
    def test_structure_is_that_of_a_mask(self, library, options, takes_part):
        mask = np.fromfunction(takes_part, (5, 7), dtype=int)
        ours = _run(library, AttentionFn(**options), ONE_BATCH)
        _assert_close(ours, _run(library, OWN[library], ONE_BATCH, mask=mask[None, None]))

    @parameterized.parameters(*OWN)
    def test_scale(self, library):
        function = AttentionFn(scale=0.7)
        query = normal(3, 5, HEADS, CHANNELS)
        theirs = OWN[library](query * np.float32(0.7 * CHANNELS**0.5), query, query)
        np.testing.assert_allclose(function(query, query, query), theirs, rtol=1e-5, atol=1e-6)

    @pytest.mark.skipif(not _NNX_PASSES_IS_CAUSAL, reason="this release of Flax has no is_causal")
    def testnnx_module_called_with_is_causal(self):
        ours = _run("nnx", AttentionFn(), ONE_BATCH, is_causal=True)
        _assert_close(ours, _run("nnx", nnx.dot_product_attention, ONE_BATCH, is_causal=True))

    def test_modules_with_equal_options_compile_once(self):
        traced = []

        @nnx.jit
        def run(module, x):
            traced.append(module.attention_fn)
            return module(x)

        for _ in range(2):
            run(nnx_module(AttentionFn(is_causal=True)), ONE_BATCH[0])
        assert len(traced) == 1
        for _ in range(2):  # the control: what partial makes is equal to itself only
            run(nnx_module(functools.partial(AttentionFn())), ONE_BATCH[0])
        assert len(traced) == 3

    @parameterized.named_parameters(("one_batch_axis", ONE_BATCH), ("two_batch_axes", TWO_BATCHES), ("none", NO_BATCH))
    def test_lengths_bound_for_a_call_are_those_of_a_mask(self, inputs):
        batch = inputs[0].shape[:-2]
        lengths = np.random.default_rng(5).integers(1, 8, batch)

        class Parent(linen.Module):
            @linen.compact
            def __call__(self, inputs, lengths):
                attend = functools.partial(AttentionFn(), key_value_seq_lengths=lengths)
                return linen_module(attend, name="attention")(*inputs)

        own = _parameters("linen")
        ours = jax.jit(Parent().apply)({"params": {"attention": own["params"]}}, inputs, lengths)
        mask = (np.arange(7) < lengths[..., None])[..., None, None, :]
        theirs = linen_module(linen.dot_product_attention).apply(own, *inputs, mask=mask)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


class DecodeTest(parameterized.TestCase):
    """One token at a time, with the cache of the module."""

    max_length = 6

    def _nnx(self, attention_fn, tokens, mask):
        module = nnx_module(attention_fn, decode=True, num_kv_heads=2)
        module.init_cache(tokens.shape)
        step = nnx.jit(lambda module, token: module(token, mask=mask))
        return [step(module, token) for token in self._each(tokens)]

    def _linen(self, attention_fn, tokens, mask):
        module = linen_module(attention_fn, decode=True)
        variables = module.init(jax.random.key(0), tokens)
        step = jax.jit(lambda variables, token: module.apply(variables, token, mask=mask, mutable=["cache"]))
        outputs = []
        for token in self._each(tokens):
            out, cache = step(variables, token)
            variables = variables | cache
            outputs.append(out)
        return outputs

    def _each(self, tokens):
        return [tokens[..., t : t + 1, :] for t in range(self.max_length)]

    def _tokens(self, *batch):
        return normal(*batch, self.max_length, FEATURES)

    @parameterized.product(library=tuple(OWN), batch=((3,), (2, 3)), masked=(False, True))
    def test_every_step_is_that_of_flax(self, library, batch, masked):
        decode = getattr(self, f"_{library}")
        mask = make_mask(*batch, 1, 1, self.max_length) if masked else None
        tokens = self._tokens(*batch)
        ours, theirs = decode(AttentionFn(), tokens, mask), decode(OWN[library], tokens, mask)
        np.testing.assert_allclose(np.stack(ours), np.stack(theirs), atol=2e-6)

    def test_steps_are_the_rows_of_one_causal_pass(self):
        tokens = self._tokens(3)
        steps = np.concatenate(self._nnx(AttentionFn(), tokens, None), axis=1)
        whole = nnx_module(AttentionFn(is_causal=True), num_kv_heads=2)(tokens)
        np.testing.assert_allclose(steps, whole, atol=2e-6)

    @parameterized.product(
        library=tuple(OWN), options=({"is_causal": True}, {"local_window_size": (3, 0)}, {"local_window_size": 3})
    )
    def test_structure_counted_from_the_first_key_is_refused(self, library, options):
        with pytest.raises(
            ValueError, match=r"1 query and 6 keys, as when a module decodes.*Decode with AttentionFn\(\)"
        ):
            getattr(self, f"_{library}")(AttentionFn(**options), self._tokens(3), None)

    def test_one_query_and_one_key_are_no_cache(self):
        query = normal(3, 1, HEADS, CHANNELS)
        np.testing.assert_array_equal(AttentionFn(is_causal=True)(query, query, query), query)
