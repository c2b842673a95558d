"""The machine that is timed on: its name, its load, its free memory."""

import contextlib
import os
import platform
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fractal_lib

__all__ = [
    "check_device",
    "describe",
    "device_name",
    "free_memory",
    "load_average",
    "positive",
    "threads_of",
]


def check_device(device: str) -> None:
    """Raise ValueError if there is no such device."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise ValueError(f"device must be cpu or cuda, got {device!r}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no CUDA device on this machine: use --device cpu")
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise ValueError(f"there are {torch.cuda.device_count()} CUDA devices, got {device!r}")


def positive(**numbers: float | Sequence[float]) -> None:
    """Raise ValueError unless all of these are positive; a sequence stands for its smallest.

    >>> positive(batch=1, seconds=0.0)
    Traceback (most recent call last):
    ...
    ValueError: batch and seconds must be positive, got seconds = 0.0
    """
    least = {
        name: min(v, default=0) if isinstance(v, Sequence) else v for name, v in numbers.items()
    }
    wrong = [f"{name} = {value}" for name, value in least.items() if not value > 0]
    if wrong:
        names = " and ".join(", ".join(numbers).rsplit(", ", 1))
        raise ValueError(f"{names} must be positive, got {', '.join(wrong)}")


@contextlib.contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """As many threads of the CPU within, and as many as before after it.

    >>> before = torch.get_num_threads()
    >>> with threads_of(1):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    positive(threads=threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(device: str, threads: int, packages: Sequence[str] = ()) -> dict:
    """What a recorded run must say of itself: device, date, versions, threads and load.

    Args:
        device: of torch.
        threads: of the CPU.
        packages: others whose versions matter.

    Raises:
        ValueError: for a device that is not there. ImportError: for a package that is not.

    >>> sorted(describe("cpu", 1))
    ['cores', 'date', 'device', 'load_average', 'threads', 'versions']
    """
    check_device(device)
    try:
        others = {name: version(name) for name in packages}
    except PackageNotFoundError as error:
        raise ImportError(f"this case needs the package {error.name}") from error
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
        }
        | others,
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
