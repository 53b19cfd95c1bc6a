"""Few query tokens over many keys: what a decoding step with a key/value cache is.

Compute capability 9.0 has a kernel for them, which packs the query heads of a key/value head and splits the keys by
sizes alone. Its tiles are of 32 keys, or of 16 above 128 channels; a block takes 16 packed rows.
"""

import jax
import jax.export
import numpy as np
from absl.testing import parameterized
from cases import Case, assert_close, make_inputs, run_forward, tolerance
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dhp_jax
from dhp_jax import ffi, reference

_OPTIONS = (
    {},
    {"key_value_lengths": True},
    {"is_causal": True},
    {"window": (3, 150), "mask": "bts", "key_value_lengths": True},
    {"bias": "nts", "bias_dtype": "bfloat16", "query_lengths": True},
    {"bias": "bs", "bias_dtype": "float32", "mask": "nts", "key_value_lengths": True, "scale": -0.1},
)
# Query tokens, then keys around one tile, those of all warps, and several parts of them; heads and key/value heads;
# channels.
_SIZES = (
    *((1, 1, 4, 2, 64), (2, 15, 6, 2, 136), (3, 16, 5, 1, 256), (4, 17, 8, 2, 200)),
    *((5, 31, 3, 3, 64), (6, 32, 6, 2, 128), (7, 33, 3, 1, 40), (8, 63, 4, 2, 8)),
    *((9, 64, 4, 1, 256), (10, 65, 2, 2, 144), (11, 127, 12, 4, 72), (12, 128, 6, 1, 64)),
    *((13, 129, 4, 4, 128), (14, 255, 2, 1, 56), (15, 257, 4, 2, 104), (16, 513, 8, 2, 120)),
    *((1, 1100, 8, 1, 128), (1, 700, 40, 2, 64), (2, 2081, 16, 2, 128), (17, 300, 2, 1, 64)),
)


def _cases():
    """Every size, with the options and dtypes in turn."""
    for index, (tokens, keys, heads, kv_heads, channels) in enumerate(_SIZES):
        for turn in range(3):
            options = _OPTIONS[(index + 2 * turn) % len(_OPTIONS)]
            case = Case(
                f"{tokens}_{keys}_{heads}_{kv_heads}_{channels}_{turn}",
                **{"B": 2, "T": tokens, "S": keys, "N": heads, "K": kv_heads, "D": channels},
                **options,
            )
            yield case, ("bfloat16", "float16", "float32" if turn == 2 else "bfloat16")[(index + turn) % 3]


def _workspace(sizes, **facts):
    """Elements of the workspace of a call; in 16 bits and without lengths unless `facts` say so."""
    others = {"has_16_bits": True, "has_key_value_lengths": False, "maps_keys": False, "mask": (0, 0, 0, 0)}
    return ffi.forward_workspace(sizes, **others | facts)


def _num_splits(*, v=1, b, t, s, n, k, d):
    """Into how many parts the keys are split, by the size of the workspace."""
    sizes = {"v": v, "b": b, "t": t, "s": s, "n": n, "k": k, "d": d}
    elements = _workspace(sizes)
    splits, rest = divmod(elements, v * b * t * n * (d + 2))
    assert rest == 0
    return max(splits, 1)


class DecodeTest(parameterized.TestCase):
    @parameterized.named_parameters((f"{case.name}_{dtype}", case, dtype) for case, dtype in _cases())
    def test_results_are_those_of_reference(self, case, dtype):
        inputs = make_inputs(case, dtype)
        out, lse = run_forward(dhp_jax.dot_product_attention, inputs, **case.options)
        expected_out, expected_lse = reference.forward(reference.Problem(**inputs, **case.options))
        assert_close(out, expected_out, tolerance("out", dtype))
        scale = max(1.0, np.abs(expected_lse[np.isfinite(expected_lse)]).max(initial=0.0))
        assert_close(lse, expected_lse, tolerance("lse", dtype), scale)

    @parameterized.product(tokens=(1, 3), length=(0, 1, 31, 32, 599, 600), channels=(64, 256))
    def test_nan_past_the_length_has_no_effect(self, tokens, length, channels):
        case = Case("", B=1, T=tokens, S=600, N=4, K=2, D=channels)
        clean = make_inputs(case, "bfloat16")
        clean["key_value_seq_lengths"] = np.asarray([length], np.int32)
        spoiled = {**clean, **{name: clean[name].copy() for name in ("key", "value")}}
        for name in ("key", "value"):
            spoiled[name][:, length:] = np.nan
        expected = run_forward(dhp_jax.dot_product_attention, clean)
        for result, without_nan in zip(run_forward(dhp_jax.dot_product_attention, spoiled), expected, strict=True):
            np.testing.assert_array_equal(result, without_nan)
        assert np.all(np.isfinite(expected[0].astype(np.float32)))
        assert np.all(np.isfinite(expected[1])) == (length > 0)

    @parameterized.product(sizes=((1, 90), (4, 3000)), options=_OPTIONS[:2])
    def test_bits_do_not_depend_on_the_batch_around_while_the_splits_are_the_same(self, sizes, options):
        tokens, keys = sizes
        shape = {"t": tokens, "s": keys, "n": 4, "k": 2, "d": 64}
        assert _num_splits(b=1, **shape) == _num_splits(b=2, **shape)
        case = Case("", B=2, T=tokens, S=keys, N=4, K=2, D=64, **options)
        inputs = make_inputs(case, "bfloat16")
        both = run_forward(dhp_jax.dot_product_attention, inputs)
        for b in range(2):
            alone = run_forward(dhp_jax.dot_product_attention, {name: x[b : b + 1] for name, x in inputs.items()})
            for result, of_both in zip(alone, both, strict=True):
                np.testing.assert_array_equal(result[0], of_both[b])

    def test_a_mapped_axis_is_a_batch(self):
        case = Case("", B=3, T=2, S=1100, N=4, K=2, D=64, key_value_lengths=True)
        inputs = make_inputs(case, "bfloat16")
        whole = dhp_jax.dot_product_attention(**inputs)
        mapped = jax.vmap(lambda x: dhp_jax.dot_product_attention(**x))(
            {name: x[:, None] for name, x in inputs.items()}
        )
        np.testing.assert_array_equal(mapped[:, 0], whole)

    @parameterized.parameters(
        (("query",),), (("key",),), (("value", "key_value_seq_lengths"),), (("query", "key", "mask"),)
    )
    def test_what_is_not_mapped_is_shared(self, mapped):
        case = Case("", B=2, T=3, S=300, N=6, K=2, D=136, key_value_lengths=True, mask="bts")
        each = [make_inputs(case, "bfloat16", seed=seed) for seed in range(3)]
        inputs = {name: np.stack([one[name] for one in each]) if name in mapped else x for name, x in each[0].items()}
        axes = {name: 0 if name in mapped else None for name in inputs}
        out = jax.vmap(lambda arrays: dhp_jax.dot_product_attention(**arrays), in_axes=(axes,))(inputs)
        for i, of_one in enumerate(each):
            expected, _ = reference.forward(
                reference.Problem(**{name: of_one[name] if name in mapped else x for name, x in each[0].items()})
            )
            assert_close(out[i], expected, tolerance("out", "bfloat16"))

    @parameterized.parameters(AxisType.Auto, AxisType.Explicit)
    def test_each_shard_has_a_workspace_of_its_own(self, axis_type):
        """Of another size than that of the whole, which is known only inside."""
        if jax.device_count() < 4:
            self.skipTest("fewer than four devices")
        case = Case("", B=2, T=2, S=1100, N=4, K=2, D=64, key_value_lengths=True)
        shape = {"t": 2, "s": 1100, "d": 64}
        assert _num_splits(b=2, n=4, k=2, **shape) == _num_splits(b=1, n=2, k=1, **shape) > 1
        inputs = make_inputs(case, "bfloat16")
        mesh = jax.make_mesh((2, 2), ("batch", "heads"), axis_types=(axis_type,) * 2)
        rows, lengths = (NamedSharding(mesh, spec) for spec in (P("batch", None, "heads"), P("batch")))
        sharded = {name: jax.device_put(x, rows if x.ndim == 4 else lengths) for name, x in inputs.items()}
        attend = jax.jit(lambda arrays: dhp_jax.dot_product_attention(**arrays))
        out = attend(sharded)
        assert out.sharding.is_equivalent_to(rows, 4)
        np.testing.assert_array_equal(out, attend(inputs))

    @parameterized.parameters(1, 3)
    def test_a_batch_of_a_size_not_known_when_exported(self, batch):
        """The program has no workspace: the keys are not split."""
        case = Case("", B=batch, T=1, S=700, N=4, K=2, D=64, key_value_lengths=True)
        inputs = make_inputs(case, "bfloat16")
        (size,) = jax.export.symbolic_shape("size")
        shapes = {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in inputs.items()}
        attend = jax.jit(lambda arrays: dhp_jax.dot_product_attention(**arrays))
        exported = jax.export.export(attend, disabled_checks=dhp_jax.DISABLE_EXPORT_CHECKS)(shapes)
        expected, _ = reference.forward(reference.Problem(**inputs))
        assert_close(exported.call(inputs), expected, tolerance("out", "bfloat16"))


class SplitTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"b": 1, "s": 4096}, 16),
        ({"b": 1, "s": 32768}, 16),
        ({"b": 16, "s": 4096}, 1),
        ({"b": 64, "s": 8192}, 1),
        ({"b": 64, "s": 32768}, 3),
        ({"b": 32, "s": 32768}, 6),
        ({"b": 256, "s": 32768}, 1),
        ({"b": 1, "s": 2**20}, 33),
        ({"b": 1, "s": 128}, 1),
        ({"b": 1, "s": 131072, "k": 1, "n": 8}, 128),
    )
    def test_splits_fill_an_h200(self, sizes, splits):
        assert _num_splits(**{"t": 1, "n": 32, "k": 8, "d": 128} | sizes) == splits

    @parameterized.parameters({"t": 17}, {"s": 0}, {"b": 0}, {"v": 0})
    def test_other_calls_need_no_workspace(self, **sizes):
        ours = {"v": 1, "b": 1, "t": 1, "s": 4096, "n": 32, "k": 8, "d": 128}
        assert _workspace(ours) > 0
        assert _workspace(ours | sizes) == 0
        assert _workspace(ours, has_16_bits=False) == 0

    @parameterized.parameters({"has_key_value_lengths": True}, {"maps_keys": True}, {"mask": (2, 1, 1, 1)})
    def test_the_operands_do_not_matter(self, **fact):
        sizes = {"v": 2, "b": 1, "t": 1, "s": 4096, "n": 32, "k": 8, "d": 128}
        assert _workspace(sizes, **fact) == _workspace(sizes)

    def test_the_workspace_is_small(self):
        """Parts are few, each for 16 rows, or long."""
        for batch in range(1, 140):
            for keys in (100, 5000, 131072):
                sizes = {"v": 1, "b": batch, "t": 4, "s": keys, "n": 8, "k": 2, "d": 128}
                keys_and_values = 2 * batch * keys * 2 * 128 * 2  # bytes
                assert 4 * _workspace(sizes) <= max(5 * 2**20, keys_and_values // 256)
