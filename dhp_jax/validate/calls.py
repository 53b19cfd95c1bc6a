"""Attention calls that the gates look at, made with each sort of secrets (sorts.py), or with several sorts at once.

All secrets of a call have the same shapes and dtypes: they differ in values alone. Axis letters as everywhere:
B batch, T query position, S key position, N query heads, K key/value heads, D channels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dhp_jax
from dhp_jax.validate import sorts
from dhp_jax.validate.sorts import FLOATING, Arrays

OPERANDS = ("bias", "mask", "query_seq_lengths", "key_value_seq_lengths")
DTYPES = ("float32", "bfloat16", "float16")
_CHANNELS = (64, 128, 256)  # up to each of them, kernels are instances of their own
_BETWEEN = (96, 192)  # the same for plain scores on compute capability 9.0
_MANY_KEYS = 2100  # more than kFewKeys of cuda/launch/launch_sm90.cu, and than attention_fwd_small_sm90 takes
_MANY_HEADS = 40  # with the sizes of a Call, more blocks than attention_fwd_small_sm90 takes on any GPU
_CHUNKED_KEYS = 192  # attention_fwd_mask_bits loads 16 elements at once
_GROUP = 5  # query heads to a key/value head of them
_SORTS = 6  # batch elements: of lengths one has each sort, and with two key/value heads of values
_FEW_BLOCKS = 3  # batch elements with which attention_fwd_small_sm90 takes a call on any Hopper GPU
_FEW_TOKENS = 3  # attention_fwd_decode_sm90 takes them; with _CACHE keys in parts
_CACHE = 1000


@dataclasses.dataclass(frozen=True)
class Call:
    """One attention call.

    Attributes:
        dtype: of query, key and value.
        channels: D.
        operands: whether bias, mask and both lengths are there.
        mask: whether mask and both lengths are there.
        lengths: whether both lengths are there, alone.
        is_causal: as in dot_product_attention.
        has_gradients: whether the backward pass runs too.
        B, T, S, N, K: sizes.
    """

    dtype: str
    channels: int
    operands: bool = False
    mask: bool = False
    lengths: bool = False
    is_causal: bool = False
    has_gradients: bool = True
    B: int = 2
    T: int = 130
    S: int = 190
    N: int = 4
    K: int = 2

    @property
    def name(self) -> str:
        """Such as "bfloat16-64-operands"."""
        traits = {
            "operands": self.operands,
            "mask": self.mask,
            "lengths": self.lengths,
            "causal": self.is_causal,
            "no-keys": self.S == 0,
            "many-keys": self.S >= _MANY_KEYS,
            "many-heads": self.N >= _MANY_HEADS,
            "few-tokens": self.T <= _FEW_TOKENS,
        }
        return "-".join([self.dtype, str(self.channels), *(trait for trait, holds in traits.items() if holds)])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array, by the name of its argument; d_out is the cotangent of the output."""
        key = (self.B, self.S, self.K, self.channels)
        query = (self.B, self.T, self.N, self.channels)
        shapes: dict[str, tuple[int, ...]] = {"query": query, "key": key, "value": key}
        if self.operands:
            shapes |= {"bias": (1, self.N, self.T, self.S)}
        if self._has_mask:
            shapes |= {"mask": (self.B, 1, self.T, self.S)}
        if self._has_lengths:
            shapes |= {"query_seq_lengths": (self.B,), "key_value_seq_lengths": (self.B,)}
        return shapes | {"d_out": query}

    @property
    def _has_mask(self) -> bool:
        return self.operands or self.mask

    @property
    def _has_lengths(self) -> bool:
        return self._has_mask or self.lengths

    def secrets(self) -> tuple[str, ...]:
        """The sorts of secrets that this call can be made with; "random" is the first."""
        return tuple(name for names in self._sorts() for name in names)

    def _sorts(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Those of values, of lengths, of masks."""
        of_lengths = tuple(sorts.OF_LENGTHS) if self._has_lengths else ()
        return tuple(sorts.OF_VALUES), of_lengths, tuple(sorts.OF_MASKS) if self._has_mask else ()

    def mixtures(self) -> tuple[str, ...]:
        """Sorts that are there at once, such as "zeros+ones+huge+one-hot", so that few runs have had all.

        Some are of values, each the sort of one key/value head and of the query heads that share it, batch element by
        batch element, and those that change the bias each of heads of it; some of lengths and some of masks, each that
        of one batch element. A block works on one head of one batch element at a time, so what it meets is pure.
        """
        of_values, of_lengths, of_masks = self._sorts()
        kinds = ((of_values[1:], self.B * self.K), (of_lengths, self.B), (of_masks, self.B))
        return tuple(
            "+".join(names[(turn + place) % len(names)] for place in range(places))
            for names, places in kinds
            for turn in range(0, len(names), places)
        )

    def _mixed(self, names: Sequence[str]) -> Arrays:
        """All arrays, with the sorts of one of `mixtures`."""
        arrays, group = self.arrays("random"), self.N // self.K
        pure = [self.arrays(name) for name in names]
        if names[0] in sorts.OF_VALUES:
            for (b, k), own in zip(itertools.product(range(self.B), range(self.K)), pure, strict=True):
                heads = slice(k * group, (k + 1) * group)
                for part in ("query", "d_out"):
                    arrays[part][b, :, heads] = own[part][b, :, heads]
                for part in ("key", "value"):
                    arrays[part][b, :, k] = own[part][b, :, k]
            if self.operands:
                of_bias = [own["bias"] for own in pure if (own["bias"] != arrays["bias"]).any()]
                for n in range(self.N if of_bias else 0):
                    arrays["bias"][0, n] = of_bias[n % len(of_bias)][0, n]
        else:
            for b, own in enumerate(pure):
                for part in OPERANDS[2:] if names[0] in sorts.OF_LENGTHS else ("mask",):
                    arrays[part][b] = own[part][b]
        return arrays

    def arrays(self, secret: str, seed: int = 0) -> Arrays:
        """All arrays of the call, NumPy, of one sort of secrets, or of one of `mixtures`."""
        if "+" in secret:
            return self._mixed(secret.split("+"))
        rng = np.random.default_rng(seed)
        arrays: Arrays = {name: rng.standard_normal(shape) for name, shape in self.shapes.items()}
        if self._has_mask:
            arrays["mask"] = rng.random(self.shapes["mask"]) < 0.8
        if self._has_lengths:
            arrays["query_seq_lengths"] = rng.integers(1, self.T + 1, self.B)
            arrays["key_value_seq_lengths"] = rng.integers(min(1, self.S), self.S + 1, self.B)
        change = (sorts.OF_VALUES | sorts.OF_LENGTHS | sorts.OF_MASKS)[secret]
        with np.errstate(over="ignore", invalid="ignore"):
            change(self, arrays)
            return {name: array.astype(self._dtype(name)) for name, array in arrays.items()}

    def _dtype(self, name: str) -> Any:
        if name == "mask":
            return np.dtype(bool)
        if name.endswith("lengths"):
            return np.dtype(np.int32)
        return jnp.dtype("float32" if name == "bias" else self.dtype)

    def program(self) -> Callable[[Arrays], dict[str, jax.Array]]:
        """The jitted function of `arrays`: output, log-sum-exp, and with gradients that of every floating argument."""

        @jax.jit
        def run(arrays: Arrays) -> dict[str, jax.Array]:
            floating = {name: arrays[name] for name in FLOATING if name in arrays}
            fixed = {name: arrays[name] for name in OPERANDS if name in arrays and name != "bias"}

            def attend(floating: Arrays) -> Any:
                return dhp_jax.dot_product_attention(
                    **floating, **fixed, is_causal=self.is_causal, return_residual=True
                )

            if not self.has_gradients:
                out, lse = attend(floating)
                return {"out": out, "lse": lse}
            out, pull_back, lse = jax.vjp(attend, floating, has_aux=True)
            (gradients,) = pull_back(arrays["d_out"])
            return {"out": out, "lse": lse} | {f"d_{name}": array for name, array in gradients.items()}

        return run


def calls(dtype: str) -> list[Call]:
    """The calls that together, with those of forward_calls, run every kernel of one dtype."""
    sizes = ((False, _FEW_BLOCKS), (True, _SORTS))
    return [Call(dtype, channels, operands, B=B) for channels in _CHANNELS for operands, B in sizes]


def forward_calls(dtype: str) -> list[Call]:
    """Calls, without gradients, that run other kernels than those of `calls`.

    On compute capability 9.0 16-bit dtypes have a kernel for few rows and keys, which takes the calls of `calls` that
    have no operands and up to 128 channels; one for more, with instances for a band, for lengths alone, for a mask,
    for all operands, with 128 channels for more than 2048 keys, and with 64 for so few rows that two blocks share the
    keys of one; and one for few tokens. Those for 8.0 run there where there is no key.
    """
    if dtype == "float32":
        return []
    forward = functools.partial(Call, dtype, has_gradients=False)
    many_heads = functools.partial(forward, N=_MANY_HEADS, K=_MANY_HEADS // _GROUP)
    found = []
    for channels in _CHANNELS:
        for is_causal in (False, True):
            found.append(many_heads(channels, is_causal=is_causal))
            found.append(forward(channels, lengths=True, is_causal=is_causal, B=_SORTS))
        found.append(forward(channels, mask=True, is_causal=channels == 128, B=_SORTS, S=_CHUNKED_KEYS))
        found += [forward(channels, operands, S=0, B=_SORTS) for operands in (False, True)]
        found.append(forward(channels, True, T=_FEW_TOKENS, S=_CACHE, B=_SORTS))
        if channels <= 128:
            found.append(forward(channels, is_causal=True, B=_FEW_BLOCKS))
        if channels == 64:
            found += [forward(channels, is_causal=is_causal, S=_MANY_KEYS) for is_causal in (False, True)]
        if channels == 128:
            found += [forward(channels, S=_MANY_KEYS), forward(channels, lengths=True, S=_MANY_KEYS, B=_SORTS)]
    for channels in _BETWEEN:
        found += [many_heads(channels, is_causal=is_causal) for is_causal in (False, True)]
    return [*found, forward(_BETWEEN[0], S=_MANY_KEYS)]


def every_call() -> list[Call]:
    """All calls: together they run every kernel."""
    return [call for dtype in DTYPES for call in (*calls(dtype), *forward_calls(dtype))]


def to_text(call: Call) -> str:
    """A call for the command line of another process."""
    return json.dumps(dataclasses.asdict(call))


def from_text(text: str) -> Call:
    """The call that to_text wrote."""
    return Call(**json.loads(text))
