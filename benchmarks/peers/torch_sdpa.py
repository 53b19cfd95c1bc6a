"""torch.nn.functional.scaled_dot_product_attention, by cuDNN and by FlashAttention-2."""

from __future__ import annotations

import functools
from typing import Any

from shapes import Shape
from timer import Build

from peers import chain


def cudnn(shape: Shape) -> Build:
    """The backend CUDNN_ATTENTION."""
    return _backend(shape, "CUDNN_ATTENTION")


def flash(shape: Shape) -> Build:
    """The backend FLASH_ATTENTION, which is FlashAttention-2."""
    return _backend(shape, "FLASH_ATTENTION")


def _backend(shape: Shape, name: str) -> Build:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attention(query: Any, key: Any, value: Any) -> Any:
        with sdpa_kernel(getattr(SDPBackend, name)):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=shape.is_causal, enable_gqa=shape.N != shape.K
            )

    return functools.partial(chain.of_torch, shape, attention, heads_first=True)
