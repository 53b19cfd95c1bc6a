"""Attention on the CPU beside `jax.nn.dot_product_attention`, in one process: `python benchmarks/cpu.py`.

Each case is timed in rounds that alternate between the two. A round calls each twice and times the second call: the
first would pay for the caches and the pool that the other implementation left behind, which no model code meets. The
table gives medians of the rounds, half the distance between their quartiles, and how many times faster ours is than
jax.nn and, where it is causal, than our own full one in the same rounds. Above it stands what this process gets out of
a matmul, and below it the memory that one call takes beyond its arguments and results, seen by a fresh process.
"""

import dataclasses
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import provenance
import results
from absl import app, flags
from timer import Timing, seconds_of

import dhp_jax

_ROUNDS = flags.DEFINE_integer("rounds", 21, "Rounds of each case; every one times one call of each.", 3)
_OUTPUT = flags.DEFINE_string("output", None, "File for the figures as JSON.")
_ONLY = flags.DEFINE_string("only", "", "Run the cases whose name contains this.")
_QUICK = flags.DEFINE_bool("quick", False, "Three cases in few rounds.")
_MEMORY_OF = flags.DEFINE_string("memory_of", None, "Print the extra memory of one case, in bytes, and stop.")


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: sizes by axis letter, and what is computed."""

    name: str
    dtype: str
    gradient: bool = False
    is_causal: bool = False
    b: int = 1
    t: int = 2048
    s: int = 2048
    n: int = 8
    k: int = 8
    d: int = 64

    @property
    def operations(self) -> float:
        """4 B N T S D forward, half of it where causal; with the backward pass 3.5 times as many."""
        forward = 4.0 * self.b * self.n * self.t * self.s * self.d / (2 if self.is_causal else 1)
        return forward * (3.5 if self.gradient else 1)

    def arguments(self) -> list[jax.Array]:
        """query, key, value and, for a gradient, the cotangent of out; standard normal."""
        shapes = [(self.b, self.t, self.n, self.d), *[(self.b, self.s, self.k, self.d)] * 2]
        shapes += [shapes[0]] * self.gradient
        keys = jax.random.split(jax.random.key(0), len(shapes))
        return [jax.random.normal(key, shape, self.dtype) for key, shape in zip(keys, shapes, strict=True)]

    def program(self, attention):
        """The jitted function of `arguments()` that is timed."""

        def forward(query, key, value):
            return attention(query, key, value, is_causal=self.is_causal)

        def forward_and_backward(query, key, value, d_out):
            out, pullback = jax.vjp(forward, query, key, value)
            return out, pullback(d_out)

        return jax.jit(forward_and_backward if self.gradient else forward)


def _cases():
    for dtype in ("float32", "bfloat16", "float16"):
        for is_causal in (False, True):
            for gradient in (False, True):
                parts = (dtype, "causal" if is_causal else "full", "fwd+bwd" if gradient else "fwd")
                yield Case(" ".join(parts), dtype, gradient, is_causal)
    for dtype in ("float32", "bfloat16"):
        yield Case(f"{dtype} decode T=1 S=4096", dtype, t=1, s=4096)
        yield Case(f"{dtype} decode T=1 S=4096 N=32 K=8 D=128", dtype, t=1, s=4096, n=32, d=128)
    yield Case("float32 D=128 full fwd", "float32", d=128)
    yield Case("float32 D=128 full fwd+bwd", "float32", gradient=True, d=128)
    yield Case("float32 S=512 B=8 full fwd", "float32", b=8, t=512, s=512)
    yield Case("float32 S=512 B=8 full fwd+bwd", "float32", gradient=True, b=8, t=512, s=512)


CASES = {case.name: case for case in _cases()}
_QUICK_CASES = ("float32 full fwd", "bfloat16 causal fwd+bwd", "bfloat16 decode T=1 S=4096")


def time_call(program, arguments) -> float:
    """Wall-clock seconds of one call, results ready."""
    return seconds_of(lambda: jax.block_until_ready(program(*arguments)))


def compare(case: Case, rounds: int) -> dict:
    """One case of a results file: ours, jax.nn where it takes the call, ours without `is_causal`, in alternation."""
    arguments = case.arguments()
    programs = {results.OURS: case.program(dhp_jax.dot_product_attention)}
    if case.is_causal:
        programs["dhp_jax full"] = dataclasses.replace(case, is_causal=False).program(dhp_jax.dot_product_attention)
    for program in programs.values():
        time_call(program, arguments)
    refusals = {}
    try:
        theirs = case.program(jax.nn.dot_product_attention)
        time_call(theirs, arguments)
        programs["jax.nn"] = theirs
    except ValueError as error:
        refusals["jax.nn"] = str(error)
    times = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            time_call(program, arguments)
            times[name].append(time_call(program, arguments))
    figures = {name: dataclasses.asdict(Timing.of(values)) for name, values in times.items()}
    return results.case(case.name, "cpu", case.operations, [figures], shape=dataclasses.asdict(case), refusals=refusals)


def matmul_gflops(size: int = 2048, rounds: int = 9) -> float:
    """What jax's own float32 matmul reaches in this process; median."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    program = jax.jit(jnp.matmul)
    times = [time_call(program, (x, x)) for _ in range(rounds + 1)][1:]
    return 2e-9 * size**3 / statistics.median(times)


def _status_bytes(field: str) -> int:
    """A figure of this process from the kernel, such as VmRSS."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no field {field!r}; extra memory is measured on Linux only.")


def extra_memory_bytes(case: Case) -> int:
    """Peak of resident memory during the first call of a compiled program, less what was there and the results."""
    arguments = jax.block_until_ready(case.arguments())
    program = case.program(dhp_jax.dot_product_attention).lower(*arguments).compile()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before = _status_bytes("VmRSS")
    made = jax.block_until_ready(program(*arguments))
    return _status_bytes("VmHWM") - before - sum(x.nbytes for x in jax.tree.leaves(made))


def extra_memory_in_child(case: Case) -> int:
    """`extra_memory_bytes` in a process that has run nothing else."""
    command = [sys.executable, __file__, "--memory_of", case.name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def facts() -> dict:
    """Where and with what the figures were measured."""
    return {
        **provenance.versions(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "host_isa": dhp_jax.build_info()["host_isa"],
        "python": platform.python_version(),
        "matmul_gflops": matmul_gflops(),
    }


def main(argv: list[str]) -> None:
    """Measures, prints the table, and writes it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if _MEMORY_OF.value is not None:
        print(extra_memory_bytes(CASES[_MEMORY_OF.value]))
        return
    told = {"version": results.VERSION, "provenance": facts(), "untested": {}, "cases": []}
    print(", ".join(f"{key} {value}" for key, value in told["provenance"].items()))
    cases = [case for name, case in CASES.items() if _ONLY.value in name and (name in _QUICK_CASES or not _QUICK.value)]
    for case in cases:
        told["cases"].append(compare(case, 5 if _QUICK.value else _ROUNDS.value))
        if case.t == case.s and not _QUICK.value:
            told["cases"][-1]["extra_bytes"] = extra_memory_in_child(case)
        print(results.table(told["cases"][-1:], "us"), flush=True)
    if _OUTPUT.value:
        results.save(pathlib.Path(_OUTPUT.value), told)
    print(results.table(told["cases"], "us"))
    for case in told["cases"]:
        if "extra_bytes" in case:
            print(f"extra memory of {case['name']}: {case['extra_bytes'] / 2**20:.1f} MiB")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    app.run(main)
