"""The machine that is timed on: its name, its load, its free memory."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import torch

import fractal_lib


def check_device(device: str) -> None:
    """Raise ValueError if there is no such device."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no CUDA device on this machine: use --device cpu")


def describe(device: str, threads: int) -> dict:
    """What a recorded run must say of itself: device, date, versions, threads and load.

    >>> sorted(describe("cpu", 1))
    ['cores', 'date', 'device', 'load_average', 'threads', 'versions']
    """
    check_device(device)
    return {
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": threads,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": load_average(),
        "versions": {
            "fractal_lib": fractal_lib.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def load_average() -> list[float] | None:
    """Processes that ran or waited to run, in the mean of the last 1, 5 and 15 minutes; None where
    unknown.
    """
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def device_name(device: str) -> str:
    """The name its maker gave to the CPU or GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def free_memory(device: torch.device | str) -> float:
    """Bytes that can still be had on the device; infinity where the system does not tell."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else float("inf")
