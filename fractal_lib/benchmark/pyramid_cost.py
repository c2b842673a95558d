"""What a pyramid costs to build, and from how many queries on that pays."""

from collections.abc import Sequence
from itertools import cycle

import torch

from fractal_lib.attention import FractalAttention, Pyramid
from fractal_lib.benchmark.harness import draw, milliseconds
from fractal_lib.benchmark.machine import free_memory, positive, threads_of
from fractal_lib.benchmark.products import dense_bmm
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Timing, Turns

__all__ = ["pyramid_cost"]

PARTS = ("build", "query", "dense", "training build")
QUERIES = 64  # different times that take turns


@case("pyramid-cost", records="pyramid-cost", speed={"seconds": 0.5})
def pyramid_cost(
    sizes: Sequence[int] = (100, 1_000, 10_000, 100_000, 1_000_000),
    batch: int = 4,
    hidden: int = 64,
    threads: int = 1,
    seconds: float = 1.0,
    progress: bool = True,
) -> list[dict]:
    """Time building a pyramid, and reading it, beside dense attention.

    Args:
        sizes: numbers of rows n.
        batch, hidden: B and H of the rows (B, n, H), float32 standard normal.
        threads: of the CPU.
        seconds: measuring time for each part, in three turns; a call is never cut short.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        one record for each size and ``method``: "build", all levels; "query", the pooled ladder at
        one t per sample of a prepared pyramid; "dense", a product over all rows; "training build",
        building and its gradient. ``seconds`` (median) and ``iqr``; with "build", ``break_even``,
        the number of queries from which on building and reading is faster than dense, None if it
        never is.

    Raises:
        ValueError: for numbers that are not positive.

    Source: chapter ``measure/benchmarks``.
    """
    positive(sizes=sizes, batch=batch, hidden=hidden, threads=threads, seconds=seconds)
    found = []
    with threads_of(threads), torch.no_grad():
        for n in sizes:
            took = _timed(n, batch, hidden, threads, seconds, progress)
            for name in PARTS:
                row = {"n": n, "method": name, "seconds": None, "iqr": None}
                if name in took:
                    row |= {"seconds": took[name].median, "iqr": took[name].iqr}
                if name == "build":
                    row["break_even"] = break_even(
                        *(took[part].median for part in ("build", "query", "dense"))
                    )
                found.append(row)
                print(f"n = {n:9,}  {name:15} {milliseconds(row['seconds'])}", flush=True)
    return found


def break_even(build: float, query: float, dense: float) -> float | None:
    """Queries from which on building once and reading is faster than dense; None if never.

    >>> break_even(10.0, 1.0, 3.0), break_even(10.0, 3.0, 1.0)
    (5.0, None)
    """
    return build / (dense - query) if dense > query else None


def _timed(
    n: int, batch: int, hidden: int, threads: int, seconds: float, progress: bool
) -> dict[str, Timing]:
    rows, times = draw(n, batch, hidden, "cpu", QUERIES)
    ladder, prepared = FractalAttention(source="pyramid"), Pyramid(rows)
    asked = cycle(times)

    def query() -> torch.Tensor:
        return ladder(prepared, next(asked))

    def dense() -> torch.Tensor:
        return dense_bmm(rows, next(asked))

    def training() -> torch.Tensor:
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            return torch.autograd.grad(Pyramid(leaf).values.sum(), leaf)[0]

    turns, calls = Turns[str](threads), (lambda: Pyramid(rows), query, dense, training)
    for name, call in zip(PARTS, calls, strict=True):
        if name != "training build" or 12 * rows.numel() * 4 < free_memory("cpu"):
            turns.add(name, call)
    return turns.measure(seconds, f"n = {n}", progress)
