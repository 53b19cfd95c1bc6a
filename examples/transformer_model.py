"""A decoder-only transformer in Flax nnx whose key/value cache hides how many of its rows are in use.

RMSNorm before each sublayer, rotary positions, grouped-query attention, a gated MLP (SwiGLU), and an output
projection tied to the token embedding.

Axis letters: B batch, T query position, S key position, N query heads, K key/value heads, D channels per
head, M model channels, F hidden channels of the MLP, V vocabulary entries.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import oblivious
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from dhp_jax import KVCache


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a `Transformer`.

    Attributes:
        attention: a function with the signature of `jax.nn.dot_product_attention`.
        decode: attention of one token over what a cache holds.
        attention_gain: factor on the attention output; 0.0 leaves a transformer that cannot look back.
        dtype: type of the activations; the parameters are always float32.
    """

    attention: Callable[..., Array]
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int = 256
    attention_gain: float = 1.0
    dtype: DTypeLike = jnp.float32
    decode: Callable[[KVCache, Array], Array] = KVCache.attend

    @property
    def hidden_dim(self) -> int:
        """Hidden channels of the MLP, with the usual 8/3 that makes up for its third matrix."""
        return 8 * self.d_model // 3


# What each attention layer has seen.
Caches = list[KVCache]

# The cosines and the sines of the rotary angles of some positions, each [B or 1, T, D/2].
Rotation = tuple[Array, Array]


def fastest_of_jax(dtype: DTypeLike) -> Callable[..., Array]:
    """Returns JAX's own attention, by the fastest way that the device has for this dtype: cuDNN takes no float32."""
    has_cudnn = jax.default_backend() == "gpu" and jnp.dtype(dtype).itemsize == 2
    return functools.partial(jax.nn.dot_product_attention, implementation="cudnn" if has_cudnn else None)


def rotary_angles(num_positions: int, head_dim: int) -> Array:
    """Returns the angle by which each position turns each pair of channels, float32 [1, S, D/2]."""
    frequencies = 10_000.0 ** -jnp.linspace(0.0, 1.0, head_dim // 2, endpoint=False)
    return jnp.arange(num_positions)[None, :, None] * frequencies


def rotate(x: Array, rotation: Rotation) -> Array:
    """Turns channels i and i + D/2 of `x` [B, T, heads, D] against each other."""
    cos, sin = (part[:, :, None, :] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention: N query heads share K key/value heads."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        def heads(number: int) -> nnx.LinearGeneral:
            features = (number, config.head_dim)
            return nnx.LinearGeneral(config.d_model, features, use_bias=False, dtype=config.dtype, rngs=rngs)

        self.query = heads(config.num_heads)
        self.key = heads(config.num_kv_heads)
        self.value = heads(config.num_kv_heads)
        self.output = nnx.LinearGeneral(
            (config.num_heads, config.head_dim),
            config.d_model,
            axis=(-2, -1),
            use_bias=False,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.attend = config.attention
        self.decode = config.decode
        self.gain = config.attention_gain

    def __call__(self, x: Array, rotation: Rotation, cache: KVCache | None) -> tuple[Array, KVCache | None]:
        """Maps `x` [B, T, M] to [B, T, M]; see `Transformer.__call__` for the ways to call it."""
        query = rotate(self.query(x), rotation)
        key = rotate(self.key(x), rotation)
        value = self.value(x)
        if cache is None or x.shape[1] > 1:
            encoded = self.attend(query, key, value, is_causal=True)
            cache = cache and cache.append(key, value, 0)
        else:
            cache = cache.append_oblivious(key, value)
            encoded = self.decode(cache, query)
        return self.output(self.gain * encoded), cache


class GatedMLP(nnx.Module):
    """The feed-forward sublayer (SwiGLU): M channels, F gated hidden channels, M channels."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        def linear(fan_in: int, fan_out: int) -> nnx.Linear:
            return nnx.Linear(fan_in, fan_out, use_bias=False, dtype=config.dtype, rngs=rngs)

        self.gate = linear(config.d_model, config.hidden_dim)
        self.up = linear(config.d_model, config.hidden_dim)
        self.down = linear(config.hidden_dim, config.d_model)

    def __call__(self, x: Array) -> Array:
        """Maps `x` [B, T, M] to [B, T, M]."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """One layer: attention, then the MLP, each added to what it was given."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.RMSNorm(config.d_model, dtype=config.dtype, rngs=rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = nnx.RMSNorm(config.d_model, dtype=config.dtype, rngs=rngs)
        self.mlp = GatedMLP(config, rngs)

    def __call__(self, x: Array, rotation: Rotation, cache: KVCache | None) -> tuple[Array, KVCache | None]:
        """Maps `x` [B, T, M] to [B, T, M]; see `Transformer.__call__` for the ways to call it."""
        attended, cache = self.attention(self.attention_norm(x), rotation, cache)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), cache


class Transformer(nnx.Module):
    """The language model: tokens in, logits of each next token out."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        initialize = nnx.initializers.normal(config.d_model**-0.5)
        self.embedding = nnx.Param(initialize(rngs.params(), (config.vocab_size, config.d_model)))
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.output_norm = nnx.RMSNorm(config.d_model, dtype=config.dtype, rngs=rngs)
        self.config = config

    def create_caches(self, batch: int, num_rows: int) -> Caches:
        """Returns an empty cache for each layer, with room for `num_rows` tokens of every batch entry."""
        shape = (batch, num_rows, self.config.num_kv_heads, self.config.head_dim)
        return [KVCache.create(*shape, self.config.dtype) for _ in self.blocks]

    def __call__(self, tokens: Array, caches: Caches | None = None) -> tuple[Array, Caches | None]:
        """Predicts the token after each of `tokens`.

        Args:
            tokens: int [B, T]. The text from its start; or, with caches that hold what comes before, its next
                token (T = 1).
            caches: what the layers have seen: nothing yet, or the text before `tokens`.

        Returns:
            The logits, float32 [B, T, V], and the caches, if there are any, with `tokens` included.
        """
        embedding = self.embedding[...].astype(self.config.dtype)
        x = oblivious.embed(tokens, embedding) * self.config.d_model**0.5
        rotation = self._rotation(tokens, caches)
        new_caches = []
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x, new_cache = block(x, rotation, cache)
            new_caches.append(new_cache)
        logits = self.output_norm(x) @ embedding.T
        return logits.astype(jnp.float32), caches and new_caches

    def _rotation(self, tokens: Array, caches: Caches | None) -> Rotation:
        """Returns the rotation of the positions of `tokens`."""
        is_start = caches is None or tokens.shape[1] > 1
        num_positions = tokens.shape[1] if is_start else caches[0].key.shape[1]
        angles = rotary_angles(num_positions, self.config.head_dim)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        if is_start:
            return cos, sin
        position = caches[0].length
        # The time of a sine can depend on its argument, so a secret position must not be the argument.
        return oblivious.read_row(cos, position)[:, None], oblivious.read_row(sin, position)[:, None]
