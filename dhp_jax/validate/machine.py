"""What is on record of the machine: the GPU, its driver and its clocks while the program ran. Nothing is set."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

_FACTS = ("name", "driver_version", "clocks.max.sm", "compute_mode", "ecc.mode.current")
_IDENTITY = ("name", "driver_version", "compute_cap", "memory.total")
_STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "pstate", "clocks_event_reasons.active")
_SECONDS_BETWEEN_SAMPLES = 0.5


def facts() -> dict[str, str]:
    """Name, driver and limits of the first GPU."""
    return _query(_FACTS)


def identity() -> dict[str, str]:
    """Which GPU and driver these are; empty where nvidia-smi gives no answer."""
    try:
        return _query(_IDENTITY)
    except RuntimeError:
        return {}


def state() -> dict[str, str]:
    """Clocks, temperature, power and the reasons for throttling, now."""
    return _query(_STATE)


def _query(fields: tuple[str, ...]) -> dict[str, str]:
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as problem:
        raise RuntimeError(
            f"nvidia-smi gives no answer ({problem}); a table says nothing without the GPU, driver and clocks "
            "it was measured on. Run where an NVIDIA driver is installed."
        ) from None
    return dict(zip(fields, (value.strip() for value in line.split(", ")), strict=True))


@contextlib.contextmanager
def clocks() -> Iterator[dict[str, dict[str, str]]]:
    """Samples the GPU's state while the body runs; the dictionary is filled when it ends.

    Yields:
        field -> {"before", "least", "greatest", "after"} as nvidia-smi writes them.
    """
    samples = [_query(_STATE)]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SECONDS_BETWEEN_SAMPLES):
            samples.append(_query(_STATE))

    sampler = threading.Thread(target=sample)
    sampler.start()
    record: dict[str, dict[str, str]] = {}
    try:
        yield record
    finally:
        ended.set()
        sampler.join()
        samples.append(_query(_STATE))
        for field in _STATE:
            values = [each[field] for each in samples]
            ordered = sorted(values, key=_number)
            record[field] = {"before": values[0], "least": ordered[0], "greatest": ordered[-1], "after": values[-1]}


def _number(value: str) -> tuple[float, str]:
    try:
        return float(value.split()[0]), value
    except ValueError:
        return 0.0, value
