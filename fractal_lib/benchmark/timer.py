"""The one timer: warmed up, in turns, by `torch.utils.benchmark`; and the clock of a long run."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch.utils.benchmark import Timer

from fractal_lib.progress import progress_bar

__all__ = ["Clock", "Timing", "Turns"]

TURNS = 3
Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles of ``blocks`` blocks of calls, and their number."""

    median: float
    quartiles: tuple[float, float]
    blocks: int

    @property
    def iqr(self) -> float:
        """The interquartile range: the spread that `compare` judges by."""
        return self.quartiles[1] - self.quartiles[0]


class Turns(Generic[Key]):
    """Calls that are timed in turns, so that whatever else the machine does hits all alike.

    >>> turns = Turns()
    >>> turns.add("sum", lambda: sum(range(100)))
    4950
    >>> turns.measure(seconds=0.01, progress=False)["sum"].median > 0
    True
    """

    def __init__(self, threads: int = 1):
        self.threads = threads
        self._timers: dict[Key, Timer] = {}

    def add(self, key: Key, call: Callable[[], Result]) -> Result:
        """Enter a call, and return its first result: that call compiles and warms up, and is not
        measured. Nothing can be timed that has not been through here.
        """
        if key in self._timers:
            raise ValueError(f"{key!r} is timed already")
        result = call()
        timer = Timer("call()", globals={"call": call}, num_threads=self.threads)
        self._timers[key] = timer
        return result

    def measure(self, seconds: float, label: str = "", progress: bool = True) -> dict[Key, Timing]:
        """Time every call that was added.

        Args:
            seconds: measuring time for each, in three turns; a call is never cut short.
            label: of the progress bar.
            progress: whether to show it, on stderr (with tqdm if it is installed).

        Complexity: a call of more than ``seconds`` is made seven times: when added, and in each
        turn once to find how many make a block, and once to be measured.
        """
        taken: dict[Key, list[float]] = {key: [] for key in self._timers}
        with progress_bar(TURNS * len(taken), label, progress) as step:
            for _ in range(TURNS):
                for key, timer in self._timers.items():
                    taken[key] += timer.blocked_autorange(min_run_time=seconds / TURNS).times
                    step("")
        return {key: _timing(times) for key, times in taken.items()}


def _timing(times: list[float]) -> Timing:
    parts = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, median, high = torch.tensor(times, dtype=torch.float64).quantile(parts).tolist()
    return Timing(median, (low, high), len(times))


class Clock:
    """Seconds by the wall, and CPU seconds of this process, of the block under it; blocks add up.

    >>> clock = Clock()
    >>> with clock:
    ...     _ = sum(range(1000))
    >>> sorted(clock.taken())
    ['cpu_s', 'wall_s']
    """

    def __init__(self):
        self.wall = self.cpu = 0.0
        self._begun = (0.0, 0.0)

    def __enter__(self) -> "Clock":
        self._begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        wall, cpu = self._begun
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def taken(self, digits: int = 2) -> dict[str, float]:
        """Both as a record has them, rounded."""
        return {"wall_s": round(self.wall, digits), "cpu_s": round(self.cpu, digits)}
