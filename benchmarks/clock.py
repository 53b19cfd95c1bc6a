"""The clock of a GPU's SMs, which power brings down under load."""

from __future__ import annotations

import importlib
from collections.abc import Callable


def reader() -> Callable[[], float] | None:
    """Reads the SM clock of the first GPU, in MHz, in microseconds; None without nvidia-ml-py or a driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
    except nvml.NVMLError:
        return None
    return lambda: float(nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM))
