"""KVCache: what decoding with it gives is what attention over all tokens gives, and an append never wraps around."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from cases import DTYPES, assert_close, tolerance
from programs import assert_same_bits

import dhp_jax
from dhp_jax import KVCache, reference

B, S, D = 3, 29, 20
HEADS = {"groups": (4, 2), "no_groups": (3, 3), "one_key_head": (5, 1)}


def normal(*shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def tokens(number, *, n=4, k=2, b=B, dtype="float32", seed=0):
    """Queries, keys and values of consecutive tokens."""
    return tuple(normal(b, number, h, D, dtype=dtype, seed=seed + i) for i, h in enumerate((n, k, k)))


def filled(lengths, *, k=2, dtype="float32"):
    """A cache in which these many rows of each sequence are in use; the others hold something all the same."""
    lengths = np.asarray(lengths)
    rows = [normal(len(lengths), S, k, D, dtype=dtype, seed=seed) for seed in (3, 4)]
    return KVCache(*rows, jnp.asarray(lengths, jnp.int32))


def recompute(query, cache, lengths):
    """Attention of the last T tokens of each sequence over its own, in float64 and with nothing that is padded."""
    # Of NumPy: JAX would compile the slices of each length.
    query, keys, values = (np.asarray(array) for array in (query, cache.key, cache.value))
    num_queries = query.shape[1]
    outs = []
    for b, length in enumerate(lengths):
        is_causal = np.tri(num_queries, length, length - num_queries, dtype=bool)
        key, value = keys[b : b + 1, :length], values[b : b + 1, :length]
        outs.append(reference.forward(reference.Problem(query[b : b + 1], key, value, mask=is_causal))[0])
    return np.concatenate(outs)


def append_in_numpy(cache, rows, positions):
    """The rule of both appends, and the lengths after it."""
    cache, num_rows = np.array(cache), rows.shape[1]
    for b, position in enumerate(positions):
        for t in range(num_rows):
            if 0 <= position + t < cache.shape[1]:
                cache[b, position + t] = rows[b, t]
    return cache, [min(max(position, -num_rows), cache.shape[1]) + num_rows for position in positions]


def secret_step(cache, query, key, value):
    cache = cache.append_oblivious(key, value)
    return cache, cache.attend(query)


def public_step(cache, query, key, value, position):
    cache = cache.append(key, value, position)
    return cache, cache.attend(query)


class DecodingTest(parameterized.TestCase):
    @parameterized.product(dtype=DTYPES, num_tokens=(1, 2, 5, 16))
    def test_secret_steps_are_attention_over_all_tokens(self, dtype, num_tokens):
        n, k = list(HEADS.values())[num_tokens % 3]
        lengths = np.array([1, 7, 4])
        cache, step = filled(lengths, k=k, dtype=dtype), jax.jit(secret_step, donate_argnums=0)
        for i in range((S - 7) // num_tokens):
            query, key, value = tokens(num_tokens, n=n, k=k, dtype=dtype, seed=10 + i)
            cache, out = step(cache, query, key, value)
            lengths = lengths + num_tokens
            assert_close(out, recompute(query, cache, lengths), tolerance("out", dtype))
        np.testing.assert_array_equal(cache.length, lengths)

    @parameterized.named_parameters(*((name, *heads) for name, heads in HEADS.items()))
    def test_public_steps_are_attention_over_all_tokens(self, n, k):
        cache, step = KVCache.create(B, S, k, D), jax.jit(public_step, donate_argnums=0)
        position = 0
        for num_tokens in (4, 1, 1, 4):
            query, key, value = tokens(num_tokens, n=n, k=k, seed=position)
            cache, out = step(cache, query, key, value, position)
            position += num_tokens
            assert_close(out, recompute(query, cache, [position] * B), tolerance("out", "float32"))

    def test_the_last_token_of_several_sees_what_a_single_one_sees(self):
        query, key, value = tokens(3)
        cache = filled([5, 2, 9]).append_oblivious(key, value)
        several, single = cache.attend(query), cache.attend(query[:, 2:])
        assert_close(np.asarray(several[:, 2:]), np.asarray(single, np.float64), 1e-6)

    def test_bias_mask_and_scale_are_those_of_attention(self):
        lengths, num_tokens = [9, 6, 20], 3
        query, key, value = tokens(num_tokens)
        bias = normal(1, 4, num_tokens, S)
        mask = jnp.asarray(np.random.default_rng(1).random((B, 1, 1, S)) < 0.6).at[..., 0].set(True)
        cache = filled(lengths).append_oblivious(key, value)
        out = cache.attend(query, bias, mask, scale=0.3)
        row = np.arange(S)
        is_causal = row <= (np.array(lengths)[:, None] + np.arange(num_tokens))[:, None, :, None]
        problem = reference.Problem(query, cache.key, cache.value, bias, is_causal & np.asarray(mask), scale=0.3)
        assert_close(out, reference.forward(problem)[0], tolerance("out", "float32"))

    @parameterized.parameters(1, 3)
    def test_what_lies_past_a_length_is_not_seen(self, num_tokens):
        query, key, value = tokens(num_tokens)
        cache = filled([9, 6, 20]).append_oblivious(key, value)
        past = (jnp.arange(S) >= cache.length[:, None])[..., None, None]
        poisoned = dataclasses.replace(
            cache, key=jnp.where(past, jnp.nan, cache.key), value=jnp.where(past, jnp.inf, cache.value)
        )
        assert_same_bits(poisoned.attend(query), cache.attend(query))

    def test_prompts_of_secret_lengths_decode_at_public_positions(self):
        """As docs/decoding.md shows: the rows of the padding stay unused, and a mask hides them."""
        padded, lengths = 8, np.array([8, 3, 5])
        cache = filled([padded] * B)
        row = jnp.arange(S)
        visible = ((row < lengths[:, None]) | (row >= padded))[:, None, None]
        for i in range(4):
            query, key, value = tokens(1, seed=20 + i)
            cache = _append_traced(cache, key, value, padded + i)
            out = cache.attend(query, mask=visible)
            keys, values = np.asarray(cache.key), np.asarray(cache.value)
            for b, length in enumerate(lengths):
                used = np.r_[0:length, padded : padded + i + 1]
                kept = KVCache(keys[b : b + 1, used], values[b : b + 1, used], None)
                expected = recompute(query[b : b + 1], kept, [len(used)])
                assert_close(out[b : b + 1], expected, tolerance("out", "float32"))


# What a sum, a float operation or a flush to zero would change.
_ODD_VALUES = (-0.0, 0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40, 6e-8, 3e4)


def odd_rows(num_tokens, dtype, *, b=B, k=2, d=D):
    rows = np.resize(np.array(_ODD_VALUES, np.float32), (b, num_tokens, k, d))
    return jnp.asarray(rows.astype(jnp.dtype(dtype)))


_append_secret, _append_traced = jax.jit(KVCache.append_oblivious), jax.jit(KVCache.append)


class AppendTest(parameterized.TestCase):
    @parameterized.product(dtype=DTYPES, num_tokens=(1, 7))
    def test_secret_and_public_append_have_the_same_bits(self, dtype, num_tokens):
        key, value = odd_rows(num_tokens, dtype), tokens(num_tokens, dtype=dtype)[1]
        full = filled([S] * B, dtype=dtype)
        for position in (0, 13, S - 7):
            secret = _append_secret(full.truncate(jnp.full(B, position)), key, value)
            assert_same_bits(_append_traced(full, key, value, position), secret)
            assert_same_bits(secret.key[:, position : position + num_tokens], key)
        assert_same_bits(jax.jit(lambda cache: cache.append(key, value, position))(full), secret)

    @parameterized.product(num_tokens=(1, 4), dtype=("float32", "bfloat16"))
    def test_secret_append_never_wraps_around(self, num_tokens, dtype):
        lengths = np.array([0, S - num_tokens, S - 2, S - 1, S, S + 1, 2**31 - 1, -1, -3, -(2**31)], np.int64)
        key = normal(len(lengths), num_tokens, 2, D, dtype=dtype)
        cache = filled([S] * len(lengths), dtype=dtype)
        cache = dataclasses.replace(cache, length=jnp.asarray(lengths, jnp.int32))
        appended = _append_secret(cache, key, -key)
        positions = np.maximum(lengths, 0)
        expected, ends = append_in_numpy(cache.key, np.asarray(key), positions)
        np.testing.assert_array_equal(appended.key, expected)
        np.testing.assert_array_equal(appended.value, append_in_numpy(cache.value, np.asarray(-key), positions)[0])
        np.testing.assert_array_equal(appended.length, ends)

    @parameterized.parameters(1, 4)
    def test_append_at_a_traced_position_never_wraps_around(self, num_tokens):
        cache, (_, key, value) = filled([S] * B), tokens(num_tokens)
        ends = (S - 4, S - 3, S - 1, S, S + 1, S + 2, 2**31 - 1, 0, -1, -3, -4, -5, -S, -(2**31))
        for position in (5, *ends):
            appended = _append_traced(cache, key, value, position)
            for name, rows in (("key", key), ("value", value)):
                expected, lengths = append_in_numpy(getattr(cache, name), np.asarray(rows), [position] * B)
                np.testing.assert_array_equal(getattr(appended, name), expected, f"{name} at {position}")
                np.testing.assert_array_equal(appended.length, lengths)

    def test_a_length_above_the_end_tells_that_tokens_were_dropped(self):
        cache, (_, key, value) = filled([S - 2, S - 1, S]), tokens(1)
        for lost in ([False, False, True], [False, True, True], [True, True, True], [True, True, True]):
            cache = cache.append_oblivious(key, value)
            np.testing.assert_array_equal(cache.length > S, lost)

    def test_a_full_cache_keeps_its_first_tokens_and_attends_to_them(self):
        query, key, value = tokens(1)
        full = filled([S] * B)
        cache = full.append_oblivious(key, value)
        assert_same_bits((cache.key, cache.value), (full.key, full.value))
        assert_same_bits(cache.attend(query), full.attend(query))

    @parameterized.parameters("int8", "uint8", "int16", "uint32", "int64", "uint64")
    def test_a_position_has_any_integer_type(self, dtype):
        cache, (_, key, value) = filled([4] * B), tokens(2)
        expected = cache.append(key, value, 11)
        assert_same_bits(cache.append(key, value, np.asarray(11, dtype)), expected)
        assert_same_bits(cache.append(key, value, np.dtype(dtype).type(11)), expected)

    def test_truncate_keeps_the_first_tokens(self):
        cache = filled([9, 6, 20])
        np.testing.assert_array_equal(cache.truncate(np.array([7, 7, 7])).length, [7, 6, 7])
        np.testing.assert_array_equal(cache.truncate(np.array([-5, 2**40, 0])).length, [0, 6, 0])
        np.testing.assert_array_equal(cache.truncate(cache.length - 2).length, [7, 4, 18])
        assert cache.truncate(np.array([7, 7, 7], np.uint8)).length.dtype == jnp.int32


class TransformTest(parameterized.TestCase):
    def test_a_cache_is_a_pytree_of_its_arrays(self):
        cache = filled([9, 6, 20])
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(cache)]
        assert names == [".key", ".value", ".length"]
        assert isinstance(jax.tree.map(lambda x: x, cache), KVCache)

    @parameterized.named_parameters(("secret", True), ("public", False))
    def test_a_scan_gives_what_steps_give(self, is_secret):
        inputs = jax.tree.map(lambda *x: jnp.stack(x), *(tokens(1, seed=30 + i) for i in range(5)))
        start = filled([6, 6, 6])

        def step(cache, x):
            position, new = x
            return secret_step(cache, *new) if is_secret else public_step(cache, *new, position)

        xs = (6 + jnp.arange(5), inputs)
        scanned = jax.jit(functools.partial(jax.lax.scan, step))(start, xs)
        cache, outs = start, []
        for i in range(5):
            cache, out = jax.jit(step)(cache, jax.tree.map(lambda x, i=i: x[i], xs))
            outs.append(out)
        assert_same_bits(scanned, (cache, jnp.stack(outs)))

    @parameterized.product(step=(secret_step, functools.partial(public_step, position=8)), num_tokens=(1, 2))
    def test_vmap_gives_what_single_calls_give(self, step, num_tokens):
        caches = [filled(lengths) for lengths in ([8, 2, 5], [1, 8, 3])]
        inputs = [tokens(num_tokens, seed=40 + i) for i in range(2)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *zip(caches, inputs, strict=True))
        mapped = jax.jit(jax.vmap(lambda cache, new: step(cache, *new)))(*stacked)
        single = [jax.jit(step)(cache, *new) for cache, new in zip(caches, inputs, strict=True)]
        assert_same_bits(mapped, jax.tree.map(lambda *x: jnp.stack(x), *single))

    @parameterized.named_parameters(("secret", True), ("public", False), ("static", None))
    def test_gradients_are_those_of_attention_over_all_tokens(self, is_secret):
        length, num_tokens = 7, 2
        cache, (query, key, value) = filled([length] * B), tokens(num_tokens)
        weights = normal(B, num_tokens, 4, D, seed=50)

        def with_cache(floats, position):
            start = dataclasses.replace(cache, key=floats["old_key"], value=floats["old_value"])
            new = floats["key"], floats["value"]
            appended = start.append_oblivious(*new) if is_secret else start.append(*new, position)
            return jnp.sum(appended.attend(floats["query"]) * weights)

        def without(floats, _):
            old = floats["old_key"][:, :length], floats["old_value"][:, :length]
            both = (jnp.concatenate(pair, axis=1) for pair in zip(old, (floats["key"], floats["value"]), strict=True))
            mask = np.tri(num_tokens, length + num_tokens, length, dtype=bool)
            return jnp.sum(dhp_jax.dot_product_attention(floats["query"], *both, mask=mask) * weights)

        floats = {"query": query, "key": key, "value": value, "old_key": cache.key, "old_value": cache.value}
        static = (1,) if is_secret is None else ()
        actual = jax.jit(jax.grad(with_cache), static_argnums=static)(floats, length)
        expected = jax.jit(jax.grad(without))(floats, length)
        for name, gradient in expected.items():
            assert_close(actual[name], np.asarray(gradient, np.float64), 1e-6, name=name)

    def test_a_row_that_is_overwritten_has_no_gradient(self):
        cache, (_, key, value) = filled([7, 4, 9]), tokens(2)

        def old(array):
            return jnp.sum(dataclasses.replace(cache, key=array).append_oblivious(key, value).key)

        expected = np.ones(cache.key.shape)
        for b, length in enumerate((7, 4, 9)):
            expected[b, length : length + 2] = 0
        np.testing.assert_array_equal(jax.grad(old)(cache.key), expected)


_ROWS = np.ones((B, 2, 2, D), np.float32)


class MessageTest(parameterized.TestCase):
    def assert_says(self, error, call, *parts):
        with pytest.raises(error) as raised:
            call()
        text, position = str(raised.value), 0
        for part in parts:
            position = text.find(part, position)
            assert position >= 0, f"{part!r} is missing, or comes too early, in: {text}"

    @parameterized.named_parameters(
        ("past_the_end", S - 1, (f"2 tokens at position {S - 1}", f"from 0 to {S - 2}", "larger max_length")),
        ("before_the_start", -1, ("2 tokens at position -1", f"from 0 to {S - 2}")),
        ("of_numpy", np.int64(S), (f"2 tokens at position {S}", "do not fit into a cache of 29 rows")),
    )
    def test_static_position_that_leaves_no_room(self, position, parts):
        self.assert_says(ValueError, lambda: filled([3] * B).append(_ROWS, _ROWS, position), "KVCache: ", *parts)

    @parameterized.named_parameters(
        ("secret_lengths", np.array([1, 2, 3]), ("dtype int32 and shape (3,)", "public", "use append_oblivious")),
        ("float", 1.0, ("dtype float32 and shape ()", "must be an int")),
        ("bool", True, ("dtype bool", "must be an int")),
        ("text", "end", ("position has type str", "Convert it")),
    )
    def test_position_of_another_kind(self, position, parts):
        self.assert_says(TypeError, lambda: filled([3] * B).append(_ROWS, _ROWS, position), "KVCache: ", *parts)

    @parameterized.product(
        case=(
            (
                ValueError,
                (_ROWS[0], _ROWS),
                ("key has shape (2, 2, 20)", "(B, T, K, D) = (3, 1 to 29, 2, 20)", "T = 1"),
            ),
            (ValueError, (_ROWS[:2], _ROWS), ("key has shape (2, 2, 2, 20)", "(3, 1 to 29, 2, 20)")),
            (ValueError, (_ROWS, _ROWS[:, :, :1]), ("value has shape (3, 2, 1, 20)", "(3, 1 to 29, 2, 20)")),
            (ValueError, (_ROWS[:, :0], _ROWS), ("key has shape (3, 0, 2, 20)", "1 to 29")),
            (ValueError, (np.repeat(_ROWS, 15, axis=1), _ROWS), ("key has shape (3, 30, 2, 20)", "1 to 29")),
            (ValueError, (_ROWS, _ROWS[:, :1]), ("2 keys and 1 values", "as many of both", "the same tokens")),
            (TypeError, (_ROWS, _ROWS.astype(np.float16)), ("value has dtype float16", "cache float32", "Cast it")),
            (TypeError, (None, _ROWS), ("key has type NoneType", "Convert it")),
        ),
        append=(KVCache.append_oblivious, lambda cache, key, value: cache.append(key, value, 0)),
    )
    def test_wrong_rows(self, case, append):
        error, rows, parts = case
        self.assert_says(error, lambda: append(KVCache.create(B, S, 2, D), *rows), "KVCache: ", *parts)

    def test_wrong_length(self):
        cache = filled([3] * B)
        self.assert_says(TypeError, lambda: cache.truncate(np.ones(B)), "length has dtype float32", "Cast it")
        self.assert_says(ValueError, lambda: cache.truncate(3), "length has shape ()", "(B,) = (3,)", "Repeat")

    @parameterized.named_parameters(
        ("dtype", TypeError, {"dtype": "float64"}, ("dtype is 'float64'", "float32, bfloat16, float16")),
        ("negative", ValueError, {"max_length": -1}, ("key_length is -1", "at least 0")),
        ("channels", ValueError, {"channels": 257}, ("head dimension is 257", "from 1 to 256")),
        ("heads", ValueError, {"kv_heads": 0}, ("0 key/value heads", "at least 1")),
    )
    def test_a_cache_that_attention_would_refuse(self, error, changes, parts):
        sizes = {"batch": B, "max_length": S, "kv_heads": 2, "channels": D}
        self.assert_says(error, lambda: KVCache.create(**(sizes | changes)), *parts)

    @parameterized.parameters(1, 3)
    def test_a_query_is_checked_as_by_attention(self, num_tokens):
        cache, (query, _, _) = filled([3] * B), tokens(num_tokens)
        self.assert_says(TypeError, lambda: cache.attend(query, mask=jnp.ones(S)), "mask has dtype float32", "bool")
        self.assert_says(ValueError, lambda: cache.attend(query[:, :, :3]), "3 query heads")
        self.assert_says(TypeError, lambda: cache.attend(query.astype("bfloat16")), "must be equal")
