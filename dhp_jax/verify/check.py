"""Files and policies in, reports out: in parallel, and from a cache of what was judged before."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

from dhp_jax.verify import cubin, image
from dhp_jax.verify.analysis import verify_kernel
from dhp_jax.verify.cache import Cache
from dhp_jax.verify.cubin import Unread
from dhp_jax.verify.policy import Policies
from dhp_jax.verify.report import KernelReport, unknown
from dhp_jax.verify.verdict import UnverifiableError

# A fork of a process with threads, as one that has imported JAX, may never end.
_FRESH = multiprocessing.get_context("spawn")

Progress = Callable[[int, int], None]  # told how many kernels are done, and how many there are


def verify_image(path: str | pathlib.Path, policies: Policies | None = None) -> list[KernelReport]:
    """Analyses all kernels of a file, for all architectures that it holds.

    Args:
        path: a cubin, a fatbin, or a library or program with fatbins inside.
        policies: what is secret and public in which kernel; by default all that is passed by value is public, and all
            memory secret.

    Returns:
        One report for each kernel. What cannot be read gives one with the verdict UNKNOWN; the list is never empty.
    """
    return verify_images([path], policies)


def verify_images(
    paths: Sequence[str | pathlib.Path],
    policies: Policies | None = None,
    *,
    processes: int = 1,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> list[KernelReport]:
    """Analyses all kernels of several files, as verify_image does for one.

    Args:
        paths: the files.
        policies: see verify_image.
        processes: how many work at once.
        cache: where reports are kept; None for nowhere.
        progress: called after each kernel.
    """
    reports: list[KernelReport] = []
    cubins: list[tuple[str, bytes]] = []
    for path in map(pathlib.Path, paths):
        try:
            cubins += [(str(path), data) for data in image.cubins(path.read_bytes())]
        except OSError as error:
            reports.append(unknown(str(path), f"the file cannot be read: {error}", "Check its name."))
        except UnverifiableError as problem:
            reports.append(unknown(str(path), problem.problem, problem.remedy))
    # Workers do without the collector of cycles: it would walk the kernels again and again, a third of the time.
    with ProcessPoolExecutor(processes, _FRESH, gc.disable) if processes > 1 else contextlib.nullcontext() as pool:
        run = _Run(policies or Policies(), pool, cache, progress, sum(cubin.count(data) for _, data in cubins))
        with ThreadPoolExecutor(processes) as waiting:  # for nvdisasm, which takes long
            collect = list(waiting.map(run.start, *zip(*cubins, strict=True))) if cubins else []
        reports += [report for finish in collect for report in finish()]
    named = ", ".join(str(path) for path in paths)
    return reports or [unknown(named or "nothing", "there is no kernel in it", "Pass the file that holds the kernels.")]


def _verify(kernel: Unread, policies: Policies) -> KernelReport:
    name = kernel.kernel.name
    try:
        return verify_kernel(kernel.read(), policies.of(name))
    except UnverifiableError as problem:
        return unknown(name, problem.problem, problem.remedy)


class _Run:
    """One pass over cubins."""

    def __init__(
        self, policies: Policies, pool: Executor | None, cache: Cache | None, progress: Progress | None, total: int
    ):
        self._policies = policies
        self._pool = pool
        self._cache = cache
        self._progress = progress
        self._total = total
        self._done = 0

    def start(self, name: str, data: bytes) -> Callable[[], list[KernelReport]]:
        """Begins with a cubin; the function that it returns waits for the reports."""
        kept = self._cache.find(data, self._policies) if self._cache else None
        if kept is not None:
            for _ in kept:
                self._count()
            return lambda: kept
        try:
            kernels = cubin.unread(data)
        except UnverifiableError as problem:
            report = unknown(name, problem.problem, problem.remedy)
            return lambda: [report]
        futures = [self._submit(kernel) for kernel in kernels]

        def finish() -> list[KernelReport]:
            reports = [future.result() for future in futures]
            if self._cache:
                self._cache.keep(data, self._policies, reports)
            return reports

        return finish

    def _submit(self, kernel: Unread) -> Future[KernelReport]:
        future: Future[KernelReport] = Future()
        if self._pool:
            future = self._pool.submit(_verify, kernel, self._policies)
        else:
            future.set_result(_verify(kernel, self._policies))
        future.add_done_callback(lambda _: self._count())
        return future

    def _count(self) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._total)
