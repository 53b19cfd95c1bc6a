"""Implementations of attention that ours is timed beside: one small adapter a file.

An adapter is a function of a Shape that returns a timer.Build, and raises where it cannot run the shape. Importing an
adapter imports nothing of the peer; where the peer is not installed, the adapter raises ImportError and the peer is
marked untested.
"""

from results import OURS

from peers import flash_attn_3, flash_attn_4, jax_mosaic, jax_nn, ours, tokamax, torch_sdpa

PEERS = {
    OURS: ours.build,
    "jax.nn cudnn": jax_nn.cudnn,
    "jax.nn xla": jax_nn.xla,
    "torch cuDNN": torch_sdpa.cudnn,
    "torch FlashAttention-2": torch_sdpa.flash,
    "jax Mosaic float16": jax_mosaic.build,
    "tokamax": tokamax.build,
    "FlashAttention-3": flash_attn_3.build,
    "FlashAttention-4": flash_attn_4.build,
}
