"""Loop 6: does memory grow over 10,000 calls?"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable

import jax

from dhp_jax.validate import gpu
from dhp_jax.validate.calls import Call
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Context

_CALLS, _QUICK_CALLS = 10_000, 1000
_WINDOWS = 5
ALLOWED = 1 << 20  # bytes in the least growing window: a leak grows in each, a thread's first memory in one


def run(context: Context) -> list[Check]:
    """Calls with gradients, on the GPU where there is one."""
    device = gpu.cpu() if gpu.objection() else jax.devices()[0]
    with jax.default_device(device):
        call = Call("bfloat16", 64, operands=True, B=1, T=33, S=47, N=2, K=1)
        program, arrays = call.program(), jax.device_put(call.arrays("random"))

        def work() -> None:
            jax.block_until_ready(program(arrays))

        def held() -> dict[str, int]:
            of_device = (device.memory_stats() or {}).get("bytes_in_use", 0)
            return {"host": resident(), "device": int(of_device)}

        return [judge(grown(work, held, _QUICK_CALLS if context.quick else _CALLS), device.device_kind)]


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def grown(work: Callable[[], None], held: Callable[[], dict[str, int]], calls: int) -> dict[str, list[int]]:
    """Growth in bytes in each of _WINDOWS windows, after one that warms up."""
    size = calls // (_WINDOWS + 1)
    figures = []
    for _ in range(_WINDOWS + 1):
        for _ in range(size):
            work()
        figures.append(held())
    return {name: [after[name] - before[name] for before, after in itertools.pairwise(figures)] for name in figures[0]}


def judge(growth: dict[str, list[int]], device: str) -> Check:
    """Memory that grows in every window leaks."""
    leaks = {name: min(windows) for name, windows in growth.items() if min(windows) > ALLOWED}
    figures = {"bytes in each window": growth, "device kind": device}
    if leaks:
        return Check("memory", Status.FAIL, f"memory grows in every window, by at least {leaks} bytes", figures)
    return Check("memory", Status.PASS, f"no growth over {_WINDOWS} windows on {device}", figures)
