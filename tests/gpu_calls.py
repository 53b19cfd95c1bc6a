"""A reduced suite for tools that watch a GPU, such as compute-sanitizer: every kernel runs, small. See the Makefile.

Ends with status 1 where a result is not finite. With `--but-outputs` the host reads gradients alone: initcheck takes
outputs for unwritten, see dhp_jax/validate/initcheck.xml.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

import dhp_jax

_B, _T, _S, _N, _K = 2, 37, 69, 4, 2
_CHANNELS = (24, 72, 256)
_STRUCTURES = ({}, {"is_causal": True}, {"local_window_size": (20, 5)})
_OPERANDS = ((), ("bias",), ("mask",), ("bias", "mask", "query_seq_lengths", "key_value_seq_lengths"))


def _arrays(dtype, channels):
    rng = np.random.default_rng(0)
    heads = {"query": (_T, _N), "key": (_S, _K), "value": (_S, _K), "d_out": (_T, _N)}
    arrays = {name: rng.standard_normal((_B, *sizes, channels)) for name, sizes in heads.items()}
    arrays["bias"] = rng.standard_normal((1, _N, _T, _S))
    arrays = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    arrays["mask"] = jnp.asarray(rng.random((_B, 1, _T, _S)) < 0.8)
    arrays["query_seq_lengths"] = jnp.array([30, _T], jnp.int32)
    arrays["key_value_seq_lengths"] = jnp.array([_S, 0], jnp.int32)
    return arrays


def main(but_outputs: bool) -> int:
    """Runs the suite; returns the exit status."""
    calls = 0
    for dtype, channels in itertools.product(("float32", "bfloat16", "float16"), _CHANNELS):
        arrays = _arrays(dtype, channels)
        for structure, operands in itertools.product(_STRUCTURES, _OPERANDS):
            fixed = {name: arrays[name] for name in operands if name != "bias"}
            wanted = ["query", "key", "value", *(name for name in operands if name == "bias")]

            @jax.jit
            def run(floating, d_out, fixed=fixed, structure=structure):
                out, pullback = jax.vjp(
                    lambda floating: dhp_jax.dot_product_attention(**floating, **fixed, **structure), floating
                )
                return out, pullback(d_out)

            out, gradients = run({name: arrays[name] for name in wanted}, arrays["d_out"])
            results = jax.tree.leaves(gradients if but_outputs else (out, gradients))
            if not all(np.isfinite(np.asarray(result, np.float32)).all() for result in results):
                print(f"not finite: {dtype}, {channels} channels, {structure}, {operands}")
                return 1
            calls += 1
    print(f"{calls} calls, forward and backward, all finite")
    return 0


if __name__ == "__main__":
    sys.exit(main("--but-outputs" in sys.argv[1:]))
