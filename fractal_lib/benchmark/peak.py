"""Peak memory of a call: on a CPU the process's own high-water mark, so each reading has a process
to itself.
"""

import gc
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_memory(prepare: Callable[[], Callable[[], object]], device: str = "cpu") -> int | None:
    """Bytes that a call needs at most, above what stood before it; its result is counted.

    Args:
        prepare: makes the call, and what it reads; for a CPU it must pickle, as a function of a
            module does.
        device: where it runs; of a CPU one thread is used.

    Returns:
        bytes, in whole pages; None for a CPU whose system does not tell (any but Linux).

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


def _cpu_peak(prepare: Callable[[], Callable[[], object]]) -> int:
    torch.set_num_threads(1)
    call = prepare()
    gc.collect()
    RESET.write_text("5")  # the high-water mark falls back to what is resident now
    before = _high_water()
    call()
    return _high_water() - before


def _high_water() -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
