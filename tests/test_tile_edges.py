"""Output and gradients at sizes around the tiles of the kernels, in every width of row that has a kernel of its own.

CUDA kernels work on tiles of 16 to 128 rows by 16 to 64 keys, and on 64, 128 or 256 channels; score operands are a
kernel of their own. The forward kernels of compute capability 9.0 have other tiles, whose edges are tested beside.
"""

import itertools

import cases
import jax
import numpy as np
from absl.testing import parameterized

import dhp_jax
from dhp_jax import reference

_SIZES = ((16, 48), (17, 47), (33, 31), (32, 49), (64, 65), (65, 64), (127, 129), (129, 96))  # queries, keys
_CHANNELS = (56, 64, 72, 128, 136, 256)
_OPTIONS = {
    "causal": {"is_causal": True},
    "everything": {
        **{"window": (90, 20), "bias": "nts", "bias_dtype": "bfloat16", "mask": "bs"},
        **{"query_lengths": True, "key_value_lengths": True},
    },
}

# Of the Hopper kernel, as test_emulated.py finds them in its source: channels, whether there is a band, whether there
# are few keys, query rows of a block, key rows of a tile, tiles in the ring.
HOPPER_TILES = (
    *((64, 0, 0, 256, 128, 4), (64, 1, 0, 256, 128, 4)),
    *((128, 0, 0, 128, 176, 2), (128, 0, 1, 128, 128, 3), (128, 1, 0, 128, 128, 3)),
    *((256, 0, 0, 128, 80, 2), (256, 1, 0, 128, 80, 2)),
    *((96, 0, 0, 256, 96, 3), (96, 0, 1, 192, 128, 2), (96, 1, 0, 192, 128, 2)),
    *((192, 0, 0, 128, 112, 2), (192, 1, 0, 128, 112, 2)),
)
# Of the kernel for few rows and keys: channels, query rows of a cluster, keys of a chunk, keys at most.
SMALL_TILES = ((64, 64, 64, 512), (128, 64, 64, 512))
_CROWD = 80  # elements of two heads: too many blocks for that kernel on any Hopper GPU; the emulated one is small
_FEW_KEYS = 2048  # at most; above, with 128 channels and no band, tiles are larger
_GROUP_ROWS = 64  # of a block, that one warpgroup has
_LENGTHS = {"query_lengths": True, "key_value_lengths": True}
_BANDS = {
    0: {"full": {}, "lengths": _LENGTHS},
    1: {
        "causal": {"is_causal": True},
        "window": {"window": (90, 20)},
        "lengths_causal": {"is_causal": True} | _LENGTHS,
    },
}
# A mask, which is read as bits, has the tiles of a band, in widths without a kernel between.
_MASKED_CHANNELS = (64, 128, 256)
_MASKS = (
    ("mask_causal_lengths", {"mask": "bnts", "is_causal": True} | _LENGTHS),
    ("mask_heads", {"mask": "nts"}),
    ("mask_window", {"mask": "bts", "window": (90, 20)}),
    ("mask_keys", {"mask": "bs"}),
    ("mask_lengths", {"mask": "t"} | _LENGTHS),
)


def _cases():
    """Every size with every sort of options; widths and dtypes take turns."""
    for index, ((name, options), (num_queries, num_keys)) in enumerate(itertools.product(_OPTIONS.items(), _SIZES)):
        for turn in range(3):
            channels = _CHANNELS[(2 * turn + index) % len(_CHANNELS)]
            case = cases.Case(
                f"{name}_{num_queries}_{num_keys}_{channels}",
                B=3,
                T=num_queries,
                S=num_keys,
                N=4,
                K=2,
                D=channels,
                **options,
            )
            yield case, cases.DTYPES[(index + turn) % len(cases.DTYPES)]


def _hopper_cases():
    """Query rows around those of a warpgroup and a block; keys around those of one tile, two, and a ring, or so many
    more, all at once, that the larger tiles are taken.
    """
    for channels, has_band, has_few_keys, rows, keys, stages in HOPPER_TILES:
        more = 0 if has_few_keys or channels not in (96, 128) or has_band else _FEW_KEYS // keys * keys
        sizes = (
            *((1, keys - 1), (_GROUP_ROWS - 1, keys), (_GROUP_ROWS, keys + 1), (_GROUP_ROWS + 1, 2 * keys - 1)),
            *((rows - 1, 2 * keys), (rows, 2 * keys + 1), (rows + 1, stages * keys)),
            *((2 * rows, stages * keys + 1), (rows + _GROUP_ROWS + 1, (stages + 1) * keys - 1)),
        )
        of_size = [(each, item) for each in enumerate(sizes) for item in _BANDS[has_band].items()]
        if has_band and channels in _MASKED_CHANNELS:
            of_size += [(each, _MASKS[(each[0] + turn) % len(_MASKS)]) for each in enumerate(sizes) for turn in (0, 2)]
        for (index, size), (name, options) in of_size:
            num_queries, num_keys = size[0], size[1] + more
            is_small = channels <= SMALL_TILES[-1][0] and num_keys <= SMALL_TILES[-1][-1]
            case = cases.Case(
                f"{name}_{num_queries}_{num_keys}_{channels}",
                B=_CROWD if is_small and jax.default_backend() == "gpu" else 1 + 2 * ("lengths" in name),
                T=num_queries,
                S=num_keys,
                N=2,
                K=1,
                D=channels - 8 * (index % 2),
                **options,
            )
            yield case, ("bfloat16", "float16")[index % 2]


def _small_cases():
    """Query rows around those of a cluster; keys around those of a chunk, of one for each warpgroup, and the most."""
    for channels, rows, keys, most in SMALL_TILES:
        in_all = 2 * channels // 64 * keys  # of a chunk for each warpgroup of both blocks
        sizes = (
            *((1, 1), (rows - 1, keys - 1), (rows, keys), (rows + 1, keys + 1), (1, in_all - 1), (rows, in_all)),
            *((2 * rows, in_all + 1), (2 * rows + 1, 2 * in_all), (rows, most - keys - 1), (3 * rows, most - keys)),
            *((rows + 1, most - keys + 1), (2 * rows - 1, most - 1), (5 * rows, most), (rows, most)),
        )
        options = {name: kind for of_band in _BANDS.values() for name, kind in of_band.items()}
        for (name, kind), (index, (num_queries, num_keys)) in itertools.product(options.items(), enumerate(sizes)):
            case = cases.Case(
                f"{name}_{num_queries}_{num_keys}_{channels}",
                B=1 + index % 2,
                T=num_queries,
                S=num_keys,
                N=2,
                K=1,
                D=channels - 8 * (index % 2),
                **kind,
            )
            yield case, ("bfloat16", "float16")[index % 2]


def _assert_forward_is_that_of_reference(case, dtype, inputs):
    out, lse = cases.run_forward(dhp_jax.dot_product_attention, inputs, **case.options)
    expected_out, expected_lse = reference.forward(reference.Problem(**inputs, **case.options))
    cases.assert_close(out, expected_out, cases.tolerance("out", dtype))
    # The log-sum-exp of a single row may be next to 0: what it is made of is not.
    scale = max(1.0, np.abs(expected_lse[np.isfinite(expected_lse)]).max(initial=0.0))
    cases.assert_close(lse, expected_lse, cases.tolerance("lse", dtype), scale)


class TileEdgeTest(parameterized.TestCase):
    @parameterized.named_parameters((f"{case.name}_{dtype}", case, dtype) for case, dtype in _cases())
    def test_results_are_those_of_reference(self, case, dtype):
        inputs, (d_out, _) = cases.make_inputs(case, dtype), cases.make_cotangents(case, dtype)
        _assert_forward_is_that_of_reference(case, dtype, inputs)
        gradients = cases.run_backward(dhp_jax.dot_product_attention, inputs, d_out, **case.options)
        expected = cases.reference_backward(inputs, d_out, **case.options)
        cases.assert_gradients_close(gradients, expected, dtype)


class HopperTileEdgeTest(parameterized.TestCase):
    @parameterized.named_parameters((f"{case.name}_{dtype}", case, dtype) for case, dtype in _hopper_cases())
    def test_results_are_those_of_reference(self, case, dtype):
        _assert_forward_is_that_of_reference(case, dtype, cases.make_inputs(case, dtype))


class SmallTileEdgeTest(parameterized.TestCase):
    @parameterized.named_parameters((f"{case.name}_{dtype}", case, dtype) for case, dtype in _small_cases())
    def test_results_are_those_of_reference(self, case, dtype):
        _assert_forward_is_that_of_reference(case, dtype, cases.make_inputs(case, dtype))
