"""The one peak-memory meter: the high-water mark of a process, and what a call adds to it."""

import gc
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

__all__ = ["high_water", "high_water_mb", "peak_memory"]

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def high_water() -> int | None:
    """Bytes that this process had resident at most since it began; None where the system does not
    tell.

    On Linux ``VmHWM``, which `peak_memory` can set back and which, unlike ``ru_maxrss``, leaves out
    the process that started this one. Elsewhere ``ru_maxrss``: bytes on macOS, kilobytes on others.

    >>> bytes_at_most = high_water()
    >>> bytes_at_most is None or 2**24 < bytes_at_most < 2**44
    True
    """
    try:
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark * 1024


def high_water_mb() -> int | None:
    """`high_water` in MB of 2^20 bytes, as records have it."""
    mark = high_water()
    return None if mark is None else round(mark / 2**20)


def peak_memory(prepare: Callable[[], Callable[[], object]], device: str = "cpu") -> int | None:
    """Bytes that a call needs at most, above what stood before it; its result is counted.

    Args:
        prepare: makes the call, and what it reads; for a CPU it must pickle, as a function of a
            module does.
        device: where it runs; of a CPU one thread is used, in a process of its own.

    Returns:
        bytes, in whole pages; None for a CPU whose system cannot set the mark back (any but Linux):
        there what ``prepare`` needed for a while would hide a part of it.

    >>> from functools import partial
    >>> made = peak_memory(partial(partial, torch.ones, 2**22))
    >>> made is None or 2**24 <= made < 2**25
    True
    """
    if torch.device(device).type == "cuda":
        call = prepare()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if not RESET.exists():
        return None
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_cpu_peak, (prepare,))


def _cpu_peak(prepare: Callable[[], Callable[[], object]]) -> int | None:
    torch.set_num_threads(1)
    call = prepare()
    gc.collect()
    RESET.write_text("5")  # the high-water mark falls back to what is resident now
    before = high_water()
    call()
    after = high_water()
    return None if before is None or after is None else after - before
