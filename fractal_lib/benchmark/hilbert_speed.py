"""Three Hilbert curves in one run: ours, and the packages hilbertcurve and numpy-hilbert-curve."""

from collections.abc import Callable

import numpy as np
import torch

from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Turns
from fractal_lib.curves.hilbert import hilbert_decode, hilbert_encode

__all__ = ["hilbert_speed"]

Call = Callable[[], object]


@case(
    "hilbert-speed",
    records="hilbert-*",
    packages=("hilbertcurve", "numpy-hilbert-curve", "numpy"),
    speed={"seconds": 1.0},
)
def hilbert_speed(
    cells: int = 1_000_000,
    order: int = 16,
    threads: int = 1,
    seconds: float = 3.0,
    progress: bool = True,
) -> list[dict]:
    """Time the Hilbert curve against two packages; all three must give the same answers.

    Args:
        cells: how many are encoded, and decoded, in a call.
        order: of the curve, on a grid of 2^order x 2^order cells.
        threads: of the CPU; of ours alone, the packages use one.
        seconds: measuring time for each, in three turns; a call is never cut short.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        one record for each: ``encode`` and ``decode``, medians in seconds, and their interquartile
        ranges.

    Raises:
        ImportError: if a package is missing. AssertionError: if two answers differ.

    Source: chapter ``gallery/hilbert``.
    """
    positive(cells=cells, order=order, seconds=seconds)
    places = np.random.default_rng(0).integers(0, 2**order, (cells, 2))
    _agree(_rivals(places[:1000], order))
    turns, calls = Turns(threads), _rivals(places, order)
    for name, (encode, decode) in calls.items():
        turns.add((name, "encode"), encode)
        turns.add((name, "decode"), decode)
    took = turns.measure(seconds, "Hilbert", progress)
    records = [
        {"name": name}
        | {what: took[name, what].median for what in ("encode", "decode")}
        | {f"{what}_iqr": took[name, what].iqr for what in ("encode", "decode")}
        for name in calls
    ]
    print(f"{cells:,} cells, order {order}, {threads} thread(s)")
    for record in records:
        words = f"encode {record['encode']:8.3f} s   decode {record['decode']:8.3f} s"
        print(f"{record['name']:<20} {words}")
    return records


def _rivals(cells: np.ndarray, order: int) -> dict[str, tuple[Call, Call]]:
    """name -> (encode, decode): calls without arguments, each on data as that package takes it."""
    import hilbert as package
    from hilbertcurve.hilbertcurve import HilbertCurve

    curve = HilbertCurve(order, 2)
    x, y = (torch.from_numpy(v.copy()) for v in cells.T)
    d = hilbert_encode(x, y, order)
    points, distances = cells.tolist(), d.tolist()
    return {
        "fractal_lib": (
            lambda: hilbert_encode(x, y, order),
            lambda: torch.stack(hilbert_decode(d, order), -1),
        ),
        "hilbertcurve": (
            lambda: curve.distances_from_points(points),
            lambda: curve.points_from_distances(distances),
        ),
        "numpy-hilbert-curve": (
            lambda: package.encode(cells, 2, order),
            lambda: package.decode(d.numpy(), 2, order),
        ),
    }


def _agree(rivals: dict[str, tuple[Call, Call]]) -> None:
    expected = [np.asarray(call()) for call in rivals["fractal_lib"]]
    for name, calls in rivals.items():
        for call, ours in zip(calls, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(call()).astype(np.int64), ours, err_msg=name)
