"""Loop 5: what each kernel makes of the machine, and which limit it meets first.

Utilisation comes from Nsight Compute, one launch of each kernel of some long calls. The floors are those of a perfect
kernel: all matrix products at the tensor cores' rate, one exponential a score, every array once through DRAM.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from dhp_jax.validate import ncu
from dhp_jax.validate.calls import Call, to_text
from dhp_jax.validate.ncu import CountersError, Launch, NoCountersError
from dhp_jax.validate.outcome import Check, Status
from dhp_jax.validate.plan import Context

# One H100 or H200, SXM (NVIDIA's data sheets): dense 16-bit products, exponentials of 16 a clock and SM at 1.755 GHz.
PEAK_TFLOPS = 989.0
EXPONENTIALS_PER_SECOND = 3.707e12
BANDWIDTH_TB = 4.8

# Utilisation -> patterns of metrics, without suffix; the first that the GPU has counts.
_PERCENT = {
    "tensor": (r"sm__pipe_tensor_cycles_active", r"sm__pipe_tensor_op_(gmma|hmma)_cycles_active"),
    "XU": (r"sm__inst_executed_pipe_xu", r"sm__pipe_xu_cycles_active"),
    "issue": (r"sm__inst_issued", r"sm__issue_active"),
    "DRAM": (r"dram__throughput",),
    "L2": (r"lts__throughput",),
    "L1": (r"l1tex__throughput",),
}
_ELAPSED = ("dram__throughput", "lts__throughput")
_TIME, _READ, _WRITTEN = "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"

CALLS = tuple(Call("bfloat16", channels, B=2, T=4096, S=4096, N=16, K=16) for channels in (64, 128, 256))


def run(context: Context) -> list[Check]:
    """Profiles each call once, forward and backward."""
    folder = context.folder / "roofline"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        percent = suffixed(ncu.known_metrics())
        names = [*percent.values(), _TIME, _READ, _WRITTEN]
        kernels = []
        for call in CALLS:
            log = folder / f"{call.name}.csv"
            launches = ncu.run(
                ["--calls", to_text(call), "--secrets", "random"], names, "^attention_", log, alone=True, flushed=True
            )
            for launch in launches:
                if missing := [name for name in names if not launch.metrics.get(name, math.nan) >= 0]:
                    raise CountersError(f"{launch.kernel} has no {', '.join(missing)}")
            kernels += [described(call, launch, percent) for launch in launches]
    except NoCountersError as reason:
        return [Check("roofline", Status.SKIPPED, str(reason))]
    except CountersError as problem:
        return [Check("roofline", Status.UNKNOWN, str(problem))]
    return [conclude(kernels)]


def suffixed(known: frozenset[str]) -> dict[str, str]:
    """Utilisation -> the metric to ask for, of those that the GPU has."""
    found = {}
    for name, patterns in _PERCENT.items():
        for pattern in patterns:
            matches = sorted(metric for metric in known if re.fullmatch(pattern, metric))
            if matches:
                window = "elapsed" if matches[-1] in _ELAPSED else "active"
                found[name] = f"{matches[-1]}.avg.pct_of_peak_sustained_{window}"
                break
    return found


def described(call: Call, launch: Launch, percent: Mapping[str, str]) -> dict[str, Any]:
    """What one launch did; operations only of the forward kernel, since the backward ones share theirs."""
    seconds = 1e-9 * launch.metrics[_TIME]
    moved = launch.metrics[_READ] + launch.metrics[_WRITTEN]
    name = re.search(r"attention_\w+?_sm\d+|attention_\w+?(?=I)", launch.kernel)
    use = {unit: launch.metrics[metric] for unit, metric in percent.items()}
    limit = max(use, key=lambda unit: use[unit]) if use else "unknown"
    told: dict[str, Any] = {
        "name": f"{name[0] if name else launch.kernel} D={call.channels}",
        "us": 1e6 * seconds,
        "percent of peak": use,
        "limit": limit,
        "DRAM bytes": moved,
    }
    if "attention_fwd" in launch.kernel:
        floors = floor_seconds(call)
        rate = operations(call) / seconds / 1e12
        told |= {"TFLOP/s": rate, "FLOP per byte": operations(call) / max(moved, 1.0), "floors us": floors}
        told["times the floor"] = seconds / (1e-6 * max(floors.values()))
    return told


def operations(call: Call) -> float:
    """Of the two products of a forward call."""
    return 4.0 * call.B * call.N * call.T * call.S * call.channels


def floor_seconds(call: Call) -> dict[str, float]:
    """The least time that each unit needs for a forward call, in us."""
    scores = call.B * call.N * call.T * call.S
    size = 4 if call.dtype == "float32" else 2
    arrays = 2 * call.B * call.channels * size * (call.T * call.N + call.S * call.K)
    return {
        "tensor": 1e6 * operations(call) / (PEAK_TFLOPS * 1e12),
        "exponentials": 1e6 * scores / EXPONENTIALS_PER_SECOND,
        "DRAM": 1e6 * arrays / (BANDWIDTH_TB * 1e12),
    }


def conclude(kernels: list[dict[str, Any]]) -> Check:
    """One check from all launches."""
    if not kernels:
        return Check("roofline", Status.UNKNOWN, "no kernel was profiled")
    rooted = [kernel for kernel in kernels if "TFLOP/s" in kernel]
    figures = {"kernels": rooted, "all": kernels, "peak TFLOP/s": PEAK_TFLOPS, "bandwidth TB/s": BANDWIDTH_TB}
    told = "; ".join(
        f"{k['name']} {k['TFLOP/s']:.0f} TFLOP/s, {k['times the floor']:.1f} times its floor, most used: {k['limit']}"
        for k in rooted
    )
    return Check("roofline", Status.PASS, f"{len(kernels)} launches; {told}", figures)
