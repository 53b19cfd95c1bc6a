"""Attention in plain float64 NumPy: what every implementation here must compute, and the one place of its maths.

Symbols, for one batch element and one query head n; key/value head n // (N / K) serves it:

  q [T, D], k [S, D], v [S, D]   query, key and value rows
  x [T, S]   scores
  L [T]      log-sum-exp of the scores
  P [T, S]   probabilities; each row adds up to 1, or to 0 where no key takes part
  o [T, D]   output
  dy         cotangent of y: how much the final result grows for each unit of y

Forward:

  x[t, s] = scale * sum_d q[t, d] k[s, d] + bias[t, s]   where key s takes part for query t, otherwise -inf
  L[t]    = log sum_s exp(x[t, s])
  P[t, s] = exp(x[t, s] - L[t])
  o[t, d] = sum_s P[t, s] v[s, d]

Backward, from do and dL. Since dL[t] / dx[t, s] = P[t, s] and dP[t, r] / dx[t, s] = P[t, r] ([r = s] - P[t, s]), and
since sum_r P[t, r] dP[t, r] = sum_d do[t, d] o[t, d], no sum over keys is needed beyond those of the forward pass:

  dv[s, d] = sum_t P[t, s] do[t, d]                      summed over the query heads that share v
  dP[t, s] = sum_d do[t, d] v[s, d]
  delta[t] = sum_d do[t, d] o[t, d] - dL[t]
  dx[t, s] = P[t, s] (dP[t, s] - delta[t])               0 where key s takes no part
  dq[t, d] = scale * sum_s dx[t, s] k[s, d]
  dk[s, d] = scale * sum_t dx[t, s] q[t, d]              summed over the query heads that share k
  dbias    = dx                                          summed over the axes along which bias repeats

Key s takes part for query t where all of these hold:

  * the mask is True there;
  * t < query_seq_lengths[b] and s < key_value_seq_lengths[b]; any integer is a legal length;
  * s <= t, if causal: aligned top-left, also where T != S;
  * t - left <= s <= t + right, with a window (left, right);
  * x[t, s] is not -inf: a bias of -inf masks.

The rest is as in ``jax.nn.dot_product_attention``, with four differences:

  * Where no key takes part for a query: o = 0, L = -inf, and its P is 0, so no gradient comes from this row.
  * L is as exact as everything else; jax.nn rounds it to the dtype of `key`.
  * Nothing of size [T, S] need be in memory. This file, made for reading, does make such arrays.
  * Rows of q, o, do, dL at or past the query length, and rows of k and v at or past the key/value length, are not
    read: they count as 0, whatever they hold, NaN included.

Everywhere else NaN and infinity spread as IEEE arithmetic says, and 0 * NaN is NaN: a NaN in a value row reaches
every query, also one for which this key is masked; a NaN in a key row reaches, forward, those for which it takes
part. The implementations never read what lies outside the causal or windowed band by a whole tile of theirs, so
there a NaN may stay unseen.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The arguments of one attention call, named as in ``dhp_jax.dot_product_attention``.

    Attributes:
      query: [B, T, N, D].
      key: [B, S, K, D].
      value: [B, S, K, D].
      bias: broadcastable to [B, N, T, S].
      mask: bool, broadcastable to [B, N, T, S]; True where a key takes part.
      scale: factor on the dot products; default 1 / sqrt(D).
      is_causal: whether a query sees no key after its own position.
      query_seq_lengths: integers [B].
      key_value_seq_lengths: integers [B].
      local_window_size: (left, right); an int w means (w, w).
    """

    query: ArrayLike
    key: ArrayLike
    value: ArrayLike
    bias: ArrayLike | None = None
    mask: ArrayLike | None = None
    scale: float | None = None
    is_causal: bool = False
    query_seq_lengths: ArrayLike | None = None
    key_value_seq_lengths: ArrayLike | None = None
    local_window_size: int | tuple[int, int] | None = None


class Gradients(NamedTuple):
    """Each has the shape of its argument; `bias` is None without bias."""

    query: Array
    key: Array
    value: Array
    bias: Array | None


class _Softmax(NamedTuple):
    query: Array  # [B, T, N, D]
    key: Array  # [B, S, N, D]: head n is the one that serves query head n
    value: Array  # [B, S, N, D]
    scale: float
    scores: Array  # x [B, N, T, S]
    lse: Array  # L [B, N, T, 1]
    probs: Array  # P [B, N, T, S]


@np.errstate(invalid="ignore", divide="ignore")
def forward(problem: Problem) -> tuple[Array, Array]:
    """Output o [B, T, N, D] and log-sum-exp L [B, T, N]."""
    softmax = _softmax(problem)
    out = np.einsum("bnts,bsnd->btnd", softmax.probs, softmax.value)
    lse = np.einsum("bnti->btn", softmax.lse)
    return np.where(np.isneginf(lse)[..., None], 0.0, out), lse


@np.errstate(invalid="ignore", divide="ignore")
def backward(problem: Problem, d_out: ArrayLike, d_lse: ArrayLike) -> Gradients:
    """Gradients from the cotangents do [B, T, N, D] and dL [B, T, N]."""
    softmax = _softmax(problem)
    out, _ = forward(problem)
    d_out = _before(problem.query_seq_lengths, d_out)
    d_lse = _before(problem.query_seq_lengths, d_lse)

    d_value = np.einsum("bnts,btnd->bsnd", softmax.probs, d_out)
    d_probs = np.einsum("btnd,bsnd->bnts", d_out, softmax.value)
    delta = np.einsum("btnd,btnd->bnt", d_out, out) - np.einsum("btn->bnt", d_lse)
    d_scores = np.where(np.isneginf(softmax.scores), 0.0, softmax.probs * (d_probs - delta[..., None]))
    d_query = softmax.scale * np.einsum("bnts,bsnd->btnd", d_scores, softmax.key)
    d_key = softmax.scale * np.einsum("bnts,btnd->bsnd", d_scores, softmax.query)

    num_key_value_heads = np.shape(problem.key)[2]
    d_bias = None if problem.bias is None else _sum_to(np.shape(problem.bias), d_scores)
    return Gradients(
        d_query, _sum_groups(d_key, num_key_value_heads), _sum_groups(d_value, num_key_value_heads), d_bias
    )


def _softmax(problem: Problem) -> _Softmax:
    query = _before(problem.query_seq_lengths, problem.query)
    group = query.shape[2] // np.shape(problem.key)[2]
    key = np.repeat(_before(problem.key_value_seq_lengths, problem.key), group, axis=2)
    value = np.repeat(_before(problem.key_value_seq_lengths, problem.value), group, axis=2)
    scale = 1.0 / np.sqrt(query.shape[3]) if problem.scale is None else float(problem.scale)

    scores = scale * np.einsum("btnd,bsnd->bnts", query, key)
    if problem.bias is not None:
        scores = scores + np.asarray(problem.bias, np.float64)
    scores = np.where(_takes_part(problem), scores, -np.inf)

    # The largest score is taken out of the exponentials, which would overflow otherwise. P is exp(x - L) written as a
    # quotient: beside a huge largest score, the logarithm in L would be lost to rounding.
    largest = scores.max(axis=-1, initial=-np.inf, keepdims=True)
    is_empty = np.isneginf(largest)
    largest = np.where(is_empty, 0.0, largest)
    weights = np.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    lse = largest + np.log(total)
    probs = np.where(is_empty, 0.0, weights / total)
    return _Softmax(query, key, value, scale, scores, lse, probs)


def _takes_part(problem: Problem) -> NDArray[np.bool_]:
    """[B|1, N|1, T, S], all conditions of the module's docstring but the last."""
    t = np.arange(np.shape(problem.query)[1])[:, None]
    s = np.arange(np.shape(problem.key)[1])
    result = np.ones((1, 1, len(t), len(s)), bool)
    if problem.mask is not None:
        result = result & np.asarray(problem.mask)
    if problem.query_seq_lengths is not None:
        result = result & (t < np.reshape(problem.query_seq_lengths, (-1, 1, 1, 1)))
    if problem.key_value_seq_lengths is not None:
        result = result & (s < np.reshape(problem.key_value_seq_lengths, (-1, 1, 1, 1)))
    if problem.is_causal:
        result = result & (s <= t)
    if problem.local_window_size is not None:
        window = problem.local_window_size
        left, right = (window, window) if isinstance(window, int) else window
        result = result & (t - left <= s) & (s <= t + right)
    return result


def _before(lengths: ArrayLike | None, rows: ArrayLike) -> Array:
    """Rows [B, length, ...] in float64, those at or past the true length as 0."""
    rows = np.asarray(rows, np.float64)
    if lengths is None:
        return rows
    is_before = np.arange(rows.shape[1]) < np.reshape(lengths, (-1, 1))
    return np.where(np.expand_dims(is_before, tuple(range(2, rows.ndim))), rows, 0.0)


def _sum_groups(gradient: Array, num_key_value_heads: int) -> Array:
    """[B, S, N, D] -> [B, S, K, D]."""
    batch, length, heads, channels = gradient.shape
    group = heads // num_key_value_heads
    return gradient.reshape(batch, length, num_key_value_heads, group, channels).sum(axis=3)


def _sum_to(shape: tuple[int, ...], gradient: Array) -> Array:
    """[B, N, T, S] -> `shape`, which broadcasts to it."""
    padded = (1,) * (4 - len(shape)) + shape
    repeats = tuple(axis for axis in range(4) if padded[axis] == 1)
    return gradient.sum(axis=repeats, keepdims=True).reshape(shape)
