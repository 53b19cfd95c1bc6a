"""Masks in 16 bits: with more than 16 query tokens on compute capability 9.0 they are read as bits, from a workspace.

What has no bias and a positive scale is; the rest comes to the same results another way.
"""

import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dhp_jax
from dhp_jax import ffi, reference

_DTYPES = ("bfloat16", "float16")
_AXES = "bnts"
# Sixteen elements of a mask are loaded at once where S is a multiple of 16.
_SIZES = {"B": 2, "T": 70, "N": 4, "K": 2}
_STRUCTURES = (
    {},
    {"is_causal": True, "query_lengths": True, "key_value_lengths": True},
    {"window": (30, 9)},
    {"key_value_lengths": True},
)


def _attend(inputs, **options):
    return dhp_jax.dot_product_attention(**inputs, **options, return_residual=True)


def _assert_right(results, inputs, dtype, **options):
    expected = reference.forward(reference.Problem(**inputs, **options))
    for name, actual, wanted in zip(("out", "lse"), results, expected, strict=True):
        cases.assert_close(actual, wanted, cases.tolerance(name, dtype))


def _broadcasts():
    """Every choice of full axes, with keys that can be loaded at once and others; widths and structures take turns."""
    choices = ["".join(axes) for size in range(5) for axes in itertools.combinations(_AXES, size)]
    for turn, (axes, keys) in enumerate(itertools.product(choices, (272, 265))):
        dtype, channels = _DTYPES[turn // 2 % 2], (64, 128, 256, 40)[turn % 4]
        options = _STRUCTURES[(turn // 3) % len(_STRUCTURES)]
        yield (
            f"{axes or 'none'}_{keys}_{channels}_{dtype}",
            cases.Case("", S=keys, D=channels, mask=axes, **_SIZES, **options),
            dtype,
        )


class BroadcastTest(parameterized.TestCase):
    @parameterized.named_parameters(*_broadcasts())
    def test_axes_of_size_one_are_repeated(self, case, dtype):
        inputs = cases.make_inputs(case, dtype)
        _assert_right(
            cases.run_forward(dhp_jax.dot_product_attention, inputs, **case.options), inputs, dtype, **case.options
        )


class OtherWayTest(parameterized.TestCase):
    """Beside a mask, what more than chooses keys."""

    @parameterized.product(dtype=_DTYPES, scale=(-0.2, 0.0, 0.3), bias=(None, "nts"))
    def test_scale_and_bias(self, dtype, scale, bias):
        case = cases.Case("", S=80, D=64, mask="bts", bias=bias, **_SIZES)
        inputs = cases.make_inputs(case, dtype)
        _assert_right(_attend(inputs, scale=scale), inputs, dtype, scale=scale)

    @parameterized.parameters(*_DTYPES)
    def test_a_batch_of_a_size_not_known_when_exported(self, dtype):
        """The program has no workspace."""
        case = cases.Case("", S=80, D=64, mask="bts", **_SIZES)
        inputs = cases.make_inputs(case, dtype)
        (size,) = jax.export.symbolic_shape("size")
        shapes = {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in inputs.items()}
        exported = jax.export.export(jax.jit(_attend), disabled_checks=dhp_jax.DISABLE_EXPORT_CHECKS)(shapes)
        _assert_right(exported.call(inputs), inputs, dtype)


class ContentTest(parameterized.TestCase):
    @parameterized.product(dtype=_DTYPES, channels=(64, 256), keys=(272, 265))
    def test_rows_and_tiles_without_keys(self, dtype, channels, keys):
        inputs = cases.make_inputs(cases.Case("", S=keys, D=channels, mask="bnts", **_SIZES), dtype)
        inputs["mask"][:, :, 3] = False
        inputs["mask"][:, :, 5:, 128:256] = False
        inputs["mask"][:, 1, 20:40] = np.arange(keys) == keys - 1
        out, lse = _attend(inputs)
        _assert_right((out, lse), inputs, dtype)
        assert (np.asarray(out[:, 3], np.float32) == 0).all()
        assert (np.asarray(lse[:, 3]) == -np.inf).all()

    @parameterized.product(dtype=_DTYPES, value=(np.nan, np.inf, -np.inf, 3e4))
    def test_hidden_keys_may_hold_anything(self, dtype, value):
        inputs = cases.make_inputs(cases.Case("", S=272, D=64, mask="bs", **_SIZES), dtype)
        hidden = inputs["key"].copy()
        hidden[np.broadcast_to(~inputs["mask"][:, 0, 0, :, None, None], hidden.shape)] = value
        for plain, changed in zip(_attend(inputs), _attend(inputs | {"key": hidden}), strict=True):
            np.testing.assert_array_equal(plain, changed)

    @parameterized.parameters(*_DTYPES)
    def test_a_mask_of_all_is_as_none(self, dtype):
        inputs = cases.make_inputs(cases.Case("", S=272, D=64, mask="ts", is_causal=True, **_SIZES), dtype)
        whole = {name: x for name, x in inputs.items() if name != "mask"}
        with_mask = _attend(whole | {"mask": np.ones_like(inputs["mask"])}, is_causal=True)
        for actual, wanted in zip(with_mask, _attend(whole, is_causal=True), strict=True):
            cases.assert_close(actual, np.asarray(wanted, np.float64), cases.tolerance("out", dtype))


class TransformTest(parameterized.TestCase):
    @parameterized.product(
        dtype=_DTYPES,
        mapped=(
            ("mask",),
            ("query",),
            ("query", "key", "mask"),
            ("key_value_seq_lengths",),
            ("mask", "query_seq_lengths"),
        ),
        axes=("bts", "ns"),
    )
    def test_vmap_over_some(self, dtype, mapped, axes):
        case = cases.Case("", S=80, D=64, mask=axes, query_lengths=True, key_value_lengths=True, **_SIZES)
        each = [cases.make_inputs(case, dtype, seed=seed) for seed in range(3)]
        inputs = {name: np.stack([one[name] for one in each]) if name in mapped else x for name, x in each[0].items()}
        where = {name: 0 if name in mapped else None for name in inputs}
        results = jax.vmap(_attend, in_axes=(where,))(inputs)
        for index, one in enumerate(each):
            own = {name: one[name] if name in mapped else x for name, x in each[0].items()}
            _assert_right([x[index] for x in results], own, dtype)

    @parameterized.product(dtype=_DTYPES, axis_type=(AxisType.Auto, AxisType.Explicit), axes=("bnts", "ts", "bs"))
    def test_each_shard_has_bits_of_its_own(self, dtype, axis_type, axes):
        case = cases.Case("", S=80, D=64, mask=axes, key_value_lengths=True, **_SIZES)
        inputs = cases.make_inputs(case, dtype)
        mesh = jax.make_mesh((2, 2), ("batch", "heads"), axis_types=(axis_type,) * 2)
        specs = dict.fromkeys(("query", "key", "value"), P("batch", None, "heads")) | {
            "key_value_seq_lengths": P("batch")
        }
        specs["mask"] = P(*(name if axis in axes else None for name, axis in (("batch", "b"), ("heads", "n"))))
        sharded = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in inputs.items()}
        for actual, wanted in zip(jax.jit(_attend)(sharded), jax.jit(_attend)(inputs), strict=True):
            np.testing.assert_array_equal(actual, wanted)

    @parameterized.parameters(*_DTYPES)
    def test_gradients(self, dtype):
        case = cases.Case("", S=80, D=64, mask="bnts", key_value_lengths=True, is_causal=True, **_SIZES)
        inputs = cases.make_inputs(case, dtype)
        d_out = np.random.default_rng(1).standard_normal(inputs["query"].shape).astype(jnp.dtype(dtype))
        expected = cases.reference_backward(inputs, d_out, is_causal=True)
        scale = max(np.abs(gradient).max() for gradient in expected.values())
        for name, gradient in cases.run_backward(dhp_jax.dot_product_attention, inputs, d_out, is_causal=True).items():
            cases.assert_close(gradient, expected[name], cases.tolerance(name, dtype), scale, name)


def _words(channels, *rows, **facts):
    """Elements of the workspace of B=2 T=70 S=272 N=4 K=2 with a mask of so many along V, B, N and T."""
    sizes = {"v": 3, "b": 2, "t": 70, "s": 272, "n": 4, "k": 2, "d": channels}
    others = {"has_16_bits": True, "has_key_value_lengths": False, "maps_keys": False}
    return ffi.forward_workspace(sizes, mask=rows, **others | facts)


class WorkspaceTest(parameterized.TestCase):
    def test_four_words_a_row_and_tile(self):
        assert _words(64, 1, 2, 1, 70) == _words(128, 1, 2, 1, 70) == 2 * 70 * 3 * 4
        assert _words(136, 3, 1, 4, 1) == 3 * 4 * 4 * 4
        assert _words(64, 0, 0, 0, 0) == _words(64, 1, 2, 1, 70, has_16_bits=False) == 0

    def test_they_lie_behind_copies_of_keys_and_values(self):
        assert _words(64, 1, 1, 1, 1, has_key_value_lengths=True) == 2 * 272 * 2 * 64 + 3 * 4
