"""Attention on one GPU beside PyTorch's and JAX's, in one process: `python benchmarks/gpu.py`.

Peers are `torch.nn.functional.scaled_dot_product_attention` on its FlashAttention-2 and cuDNN backends, and in float32
`jax.nn.dot_product_attention` at the precision "highest", which is that of float32. Each case is
timed in rounds that go through all implementations; a round times `_CALLS` calls of one, enqueued at once, until the
device has done them. The table gives medians of the rounds in TFLOP/s, half the distance between their quartiles in
per cent, and the ratios. A forward pass counts 4 B N T S D operations, half of it where causal, a backward pass 2.5
times as many, whatever the implementation does.
"""

import dataclasses
import functools
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
from absl import app, flags
from provenance import commit

import dhp_jax

_ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds of each case.", 3)
_OUTPUT = flags.DEFINE_string("output", None, "File for the figures as JSON.")
_COMMIT = flags.DEFINE_string("commit", None, "Commit that was built, where this folder is no working tree of it.")
_ONLY = flags.DEFINE_string("only", "", "Run the cases in whose name this regular expression is found.")

_CALLS = 8  # in one timed program
_TOKENS = 16384  # B times S
_HEADS = {64: 32, 128: 16, 256: 8}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of batch * length = 16384 tokens; as many heads as make 2048 channels."""

    length: int
    channels: int
    is_causal: bool
    gradient: bool = False
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """What the table calls it."""
        mask = "causal" if self.is_causal else "full"
        return f"{self.dtype} D={self.channels} S={self.length} {mask} {'bwd' if self.gradient else 'fwd'}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, S, N, D) of query, key and value."""
        return (_TOKENS // self.length, self.length, _HEADS[self.channels], self.channels)

    @property
    def operations(self) -> float:
        """What one call counts for."""
        batch, length, heads, channels = self.shape
        forward = 4 * batch * heads * length**2 * channels / (2 if self.is_causal else 1)
        return forward * (2.5 if self.gradient else 1)


def _cases():
    for gradient in (False, True):
        for channels in _HEADS:
            for length in (2048, 8192):
                for is_causal in (False, True):
                    yield Case(length, channels, is_causal, gradient)
        for is_causal in (False, True):
            yield Case(2048, 64, is_causal, gradient, "float32")


CASES = {case.name: case for case in _cases()}


def chain(case: Case, attention):
    """A function that runs `_CALLS` calls of a JAX attention, one after the other, and waits."""
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, d_out = (jax.random.normal(k, case.shape, case.dtype) for k in keys)
    attend = functools.partial(attention, is_causal=case.is_causal)
    if case.gradient:
        _, pullback = jax.vjp(attend, query, key, value)

        # The residuals come as an argument: as constants, XLA would try to fold what is computed from them alone.
        @jax.jit
        def run(pullback, d_out):
            for _ in range(_CALLS):
                d_out = sum(pullback(d_out)).astype(d_out.dtype)
            return d_out

        arguments = (pullback, d_out)
    else:

        @jax.jit
        def run(query, key, value):
            for _ in range(_CALLS):
                query = attend(query, key, value)
            return query

        arguments = (query, key, value)
    return lambda: jax.block_until_ready(run(*arguments))


def jax_nn(case: Case):
    """The same for jax.nn, in float32."""
    if case.dtype != "float32":
        raise ValueError("measured in float32 only: it keeps all scores in memory")

    def attention(*arrays, **options):
        with jax.default_matmul_precision("highest"):
            return jax.nn.dot_product_attention(*arrays, **options)

    return chain(case, attention)


def torch_peer(case: Case, backend_name: str):
    """The same for one backend of PyTorch, by PyTorch's name; RuntimeError where the backend refuses the case."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = getattr(SDPBackend, backend_name)
    dtype = getattr(torch, case.dtype)
    batch, length, heads, channels = case.shape
    draw = functools.partial(torch.randn, batch, heads, length, channels, device="cuda", dtype=dtype)
    query, key, value, d_out = (draw(requires_grad=case.gradient) for _ in range(4))
    attend = torch.nn.functional.scaled_dot_product_attention

    def run():
        with sdpa_kernel(backend):
            for _ in range(_CALLS):
                if case.gradient:
                    torch.autograd.grad(out, (query, key, value), d_out, retain_graph=True)
                else:
                    attend(query, key, value, is_causal=case.is_causal)
        torch.cuda.synchronize()

    with sdpa_kernel(backend):
        out = attend(query, key, value, is_causal=case.is_causal)
    run()
    return run


_PEERS = {
    "FlashAttention-2": functools.partial(torch_peer, backend_name="FLASH_ATTENTION"),
    "cuDNN": functools.partial(torch_peer, backend_name="CUDNN_ATTENTION"),
    "jax.nn": jax_nn,
}


def compare(case: Case, rounds: int) -> dict:
    """Medians of all implementations in TFLOP/s, what ours is of each peer's, and why a peer is missing."""
    programs, refusals = {"dhp_jax": chain(case, dhp_jax.dot_product_attention)}, {}
    for name, peer in _PEERS.items():
        try:
            programs[name] = peer(case)
        except (ImportError, RuntimeError, ValueError) as refusal:
            refusals[name] = str(refusal).partition("\n")[0]
    seconds = {name: [] for name in programs}
    for warm_up in (True, *[False] * rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            if not warm_up:
                seconds[name].append((time.perf_counter() - start) / _CALLS)
    figures = {}
    for name, values in seconds.items():
        lower, median, upper = statistics.quantiles(values, n=4)
        rate = 1e-12 * case.operations / median
        figures[name] = {"tflops": rate, "ms": 1e3 * median, "spread_percent": 50 * (upper - lower) / median}
    ratios = {
        name: figures["dhp_jax"]["tflops"] / peer["tflops"] for name, peer in figures.items() if name != "dhp_jax"
    }
    told = {"case": dataclasses.asdict(case), "name": case.name}
    return {**told, "figures": figures, "ratios": ratios, "refusals": refusals}


def provenance() -> dict:
    """Where and with what the figures were measured."""
    query = "name,driver_version,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    gpu = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0].split(", ")
    report = dict(zip(query.split(","), gpu, strict=True))
    report |= {"commit": _COMMIT.value or commit()}
    report |= {"jax": jax.__version__, "jaxlib": jax.lib.__version__, "numpy": np.__version__}
    try:
        import torch

        report |= {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    except ImportError:
        pass
    return report


def _header() -> str:
    names = ["dhp_jax", *_PEERS]
    cells = ["case", *names, *(f"of {name}" for name in _PEERS)]
    return f"| {' | '.join(cells)} |\n|---|{'--:|' * (len(cells) - 1)}"


def _row(report: dict) -> str:
    figures, ratios = report["figures"], report["ratios"]
    rates = {name: f"{f['tflops']:.0f} (+-{f['spread_percent']:.1f} %)" for name, f in figures.items()}
    cells = [report["name"], *(rates.get(name, "-") for name in ("dhp_jax", *_PEERS))]
    cells += [f"{ratios[name]:.2f}" if name in ratios else "" for name in _PEERS]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str]) -> None:
    """Measures, prints the table, and writes it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    report = {"provenance": provenance(), "cases": []}
    print(", ".join(f"{key} {value}" for key, value in report["provenance"].items()))
    print(f"\n{_header()}", flush=True)
    for name, case in CASES.items():
        if not re.search(_ONLY.value, name):
            continue
        report["cases"].append(compare(case, _ROUNDS.value))
        print(_row(report["cases"][-1]), flush=True)
        for peer, refusal in report["cases"][-1]["refusals"].items():
            print(f"{name}: {peer} refused: {refusal}", file=sys.stderr)
        if _OUTPUT.value:
            pathlib.Path(_OUTPUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
