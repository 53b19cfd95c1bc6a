"""Programs of many calls, for implementations that are functions of JAX arrays or of PyTorch tensors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from shapes import Shape
from timer import FLUSH, FLUSH_BYTES, WARM, Build, Run


def of_jax(shape: Shape, attention: Callable[..., Any], calls: int, mode: str) -> Run:
    """`calls` calls of attention(query, key, value, is_causal=...) on [B, T, N, D], one after the other, jitted.

    With lengths also key_value_seq_lengths.
    """
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 4)
    query_shape, key_shape = (shape.B, shape.T, shape.N, shape.D), (shape.B, shape.S, shape.K, shape.D)
    query, d_out = (jax.random.normal(k, query_shape, shape.dtype) for k in keys[:2])
    key, value = (jax.random.normal(k, key_shape, shape.dtype) for k in keys[2:])
    options = {"key_value_seq_lengths": jnp.full(shape.B, shape.S, jnp.int32)} if shape.lengths else {}
    attend = functools.partial(attention, is_causal=shape.is_causal, **options)
    junk = jnp.zeros(1 if mode == WARM else FLUSH_BYTES // 4, jnp.float32)

    def step(state: Any, junk: Any, call: Callable[[Any], Any]) -> tuple[Any, Any]:
        if mode != WARM:
            state, junk = jax.lax.optimization_barrier((state, junk + 1))
        return (state if mode == FLUSH else call(state)), junk

    if shape.gradient:
        _, pull_back = jax.vjp(attend, query, key, value)

        def pulled(pull_back: Any, d_out: Any) -> Any:
            d_query, d_key, d_value = pull_back(d_out)
            # The next call needs all three, whatever their shapes.
            return (d_query + d_key[:, :1, :1, :1] + d_value[:, :1, :1, :1]).astype(d_out.dtype)

        # The residuals come as an argument: as constants, XLA would try to fold what is computed from them alone.
        @jax.jit
        def run_backward(pull_back: Any, d_out: Any, junk: Any) -> Any:
            for _ in range(calls):
                d_out, junk = step(d_out, junk, functools.partial(pulled, pull_back))
            return d_out, junk[0]

        return lambda: jax.block_until_ready(run_backward(pull_back, d_out, junk))

    @jax.jit
    def run_forward(query: Any, key: Any, value: Any, junk: Any) -> Any:
        for _ in range(calls):
            query, junk = step(query, junk, lambda query: attend(query, key, value))
        return query, junk[0]

    return lambda: jax.block_until_ready(run_forward(query, key, value, junk))


def of_torch(shape: Shape, attention: Callable[..., Any], calls: int, mode: str, heads_first: bool = False) -> Run:
    """`calls` calls of attention(query, key, value), captured into a CUDA graph and replayed.

    Args:
        shape: the call.
        attention: takes and returns tensors [B, T, N, D], or [B, N, T, D] with heads_first.
        calls: how many.
        mode: see timer.py.
        heads_first: see attention.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    if shape.lengths:
        raise ValueError("it takes no true lengths")

    def draw(length: int, heads: int) -> Any:
        sizes = (shape.B, heads, length, shape.D) if heads_first else (shape.B, length, heads, shape.D)
        dtype = getattr(torch, shape.dtype)
        return torch.randn(*sizes, device="cuda", dtype=dtype, requires_grad=shape.gradient)

    query, key, value = draw(shape.T, shape.N), draw(shape.S, shape.K), draw(shape.S, shape.K)
    d_out = torch.randn_like(query)

    junk = torch.zeros(1 if mode == WARM else FLUSH_BYTES // 4, device="cuda")

    def body() -> None:
        for _ in range(calls):
            if mode != WARM:
                junk.add_(1)
            if mode == FLUSH:
                continue
            if shape.gradient:
                torch.autograd.grad(out, (query, key, value), d_out, retain_graph=True)
            else:
                attention(query, key, value)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # The forward pass is made on the stream that is captured: its backward pass runs on the same one.
        out = attention(query, key, value) if shape.gradient else None
        body()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        body()

    return _Replay(graph, (query, key, value, d_out, junk, out))


@dataclasses.dataclass(frozen=True)
class _Replay:
    """Runs a captured graph, and holds what it reads: PyTorch gives back what nobody holds before the next capture."""

    graph: Any
    held: tuple[Any, ...]

    def __call__(self) -> None:
        import torch

        self.graph.replay()
        torch.cuda.synchronize()


def of_flash_attn(shape: Shape, flash_attn_func: Callable[..., Any]) -> Build:
    """Of the function of that name, which returns the output, alone or with its statistics."""

    def attention(query: Any, key: Any, value: Any) -> Any:
        out = flash_attn_func(query, key, value, causal=shape.is_causal)
        return out[0] if isinstance(out, tuple) else out

    return functools.partial(of_torch, shape, attention)
