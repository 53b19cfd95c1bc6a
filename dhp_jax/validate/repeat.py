"""Loop 6, gate 3: equal inputs give equal bits, over runs, over processes, and wherever in a batch they stand.

A property of its own: no evidence of constant time, nor the reverse.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dhp_jax.validate import _controls, gpu
from dhp_jax.validate.calls import Call, to_text
from dhp_jax.validate.child import python
from dhp_jax.validate.outcome import Check, Status, control
from dhp_jax.validate.plan import Context

_RUNS, _QUICK_RUNS = 1000, 100
_PROCESSES = 2
_SECONDS = 120  # that a process may take

# Sizes at which tiles of all sorts are shared, split and cut.
CALLS = (
    *(Call(dtype, 64, B=4, T=200, S=170, N=8, K=2) for dtype in ("float32", "bfloat16", "float16")),
    Call("bfloat16", 128, operands=True, B=4, T=200, S=170, N=8, K=2),
    Call("bfloat16", 64, is_causal=True, B=4, T=200, S=170, N=8, K=8),
    Call("float32", 256, operands=True, B=4, T=70, S=90, N=4, K=2),
    Call("bfloat16", 128, B=4, T=1, S=1500, N=8, K=2),  # its keys are split alike in every batch
)
_QUICK = (CALLS[1], CALLS[3])


def on_cpu(context: Context) -> list[Check]:
    """The CPU kernels, in fewer runs: they are slower, and no scheduler of theirs has a say in a sum."""
    with jax.default_device(gpu.cpu()):
        chosen = _QUICK if context.quick else CALLS[1:5]
        return [judge("gate 3 cpu", "cpu", chosen, 10 if context.quick else 100)]


def on_gpu(context: Context) -> list[Check]:
    """The CUDA kernels."""
    chosen, runs = (_QUICK, _QUICK_RUNS) if context.quick else (CALLS, _RUNS)
    return [judge("gate 3 cuda", "cuda", chosen, runs)]


def controls(context: Context) -> list[Check]:
    """A sum by atomics in whatever order must be seen to differ from run to run."""
    name = "gate 3 control"
    if reason := _controls.objection():
        return [Check(name, Status.SKIPPED, reason, is_control=True)]
    values = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 1e3
    different = distinct(lambda: _controls.unordered_sum(values), 100)
    told = f"100 runs of an unordered sum had {different} different results"
    return [control(name, different > 1, told, different=different)]


def distinct(run: Callable[[], Any], runs: int) -> int:
    """How many different results, bit for bit, a function has."""
    return len({digest(run()) for _ in range(runs)})


def digest(results: Any) -> str:
    """SHA-256 of the bits of a pytree of arrays."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(results))).hexdigest()


def judge(name: str, platform: str, calls: Sequence[Call], runs: int) -> Check:
    """One check over runs, processes and batch positions."""
    differing: list[str] = []
    digests = {}
    for call in calls:
        program, arrays = call.program(), call.arrays("random")
        first = program(arrays)
        if not repeats(functools.partial(program, jax.device_put(arrays)), first, runs - 1):
            differing.append(f"{call}: runs")
        digests[to_text(call)] = digest(first)
        differing += [f"{call}: {where}" for where in moved(program, arrays, first)]
    differing += [f"{call}: processes" for call in _other_processes(platform, digests)]
    figures = {"runs": runs, "processes": _PROCESSES, "calls": digests, "differing": differing}
    if differing:
        return Check(name, Status.FAIL, f"not the same bits: {differing}", figures)
    told = f"{len(calls)} calls with gradients: the same bits in {runs} runs, in {_PROCESSES} more processes at once, "
    return Check(name, Status.PASS, told + "and at every batch position", figures)


def repeats(run: Callable[[], Any], first: Any, runs: int) -> bool:
    """Whether more runs have the bits of the first; compared where the results lie."""

    @jax.jit
    def same(a: Any, b: Any) -> jax.Array:
        leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return jnp.all(jnp.stack([jnp.all(_bits(x) == _bits(y)) for x, y in leaves]))

    answers = [same(first, run()) for _ in range(runs)]
    return bool(np.all(jax.device_get(answers))) if answers else True


def _bits(array: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(array, {2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize])


def moved(program: Callable[[Any], Any], arrays: dict[str, Any], first: Any) -> Iterable[str]:
    """Where an element of the batch has other bits, at another position or alone."""
    batch = arrays["query"].shape[0]
    turned = np.roll(np.arange(batch), 1)
    for where, index in (("other batch position", turned), ("alone in its batch", np.arange(1))):
        chosen = {name: a[index] if a.shape[0] == batch else a for name, a in arrays.items()}
        results = program(chosen)
        for name, array in first.items():
            if name == "d_bias":  # a sum over the batch
                continue
            if np.asarray(results[name]).tobytes() != np.asarray(array)[index].tobytes():
                yield f"{where}: {name}"


def _other_processes(platform: str, digests: dict[str, str]) -> list[str]:
    """The calls of which a fresh process, beside others at work, has other bits."""
    command = [*python(), "-m", "dhp_jax.validate._one", "--digests"]
    children = [
        subprocess.Popen([*command, platform, *digests], stdout=subprocess.PIPE, text=True) for _ in range(_PROCESSES)
    ]
    differing = set()
    try:
        for child in children:
            said, _ = child.communicate(timeout=_SECONDS)
            theirs = json.loads(said.splitlines()[-1]) if child.returncode == 0 and said else {}
            differing |= {call for call, ours in digests.items() if theirs.get(call) != ours}
    finally:
        for child in children:
            child.kill()
            child.wait()
    return sorted(differing)
