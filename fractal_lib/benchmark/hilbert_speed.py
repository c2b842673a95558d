"""Time three Hilbert curves in one run: ours, and the packages hilbertcurve and
numpy-hilbert-curve.

    python benchmarks/hilbert_speed.py [--cells 1000000] [--order 16] [--threads 1] [--json FILE]

All three must give the same answers before any of them is timed.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import hilbert as numpy_hilbert_curve
import numpy as np
import torch
from hilbertcurve.hilbertcurve import HilbertCurve

from fractal_lib.benchmark.machine import describe, load_average
from fractal_lib.curves.hilbert import hilbert_decode, hilbert_encode

TURNS = 3


def rivals(cells: np.ndarray, order: int) -> dict[str, tuple]:
    """name -> (encode, decode): calls without arguments, each on data as that package takes it."""
    x, y = (torch.from_numpy(v.copy()) for v in cells.T)
    d = hilbert_encode(x, y, order)
    curve = HilbertCurve(order, 2)
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
            lambda: numpy_hilbert_curve.encode(cells, 2, order),
            lambda: numpy_hilbert_curve.decode(d.numpy(), 2, order),
        ),
    }


def seconds(call, least: float = 0.3) -> float:
    """The quickest of as many calls as fit into a while: a busy machine only ever makes it slower."""
    taken = []
    while sum(taken) < least:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=10**6)
    parser.add_argument("--order", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    settings = vars(parser.parse_args())
    file = settings.pop("json")
    torch.set_num_threads(settings["threads"])
    machine = describe("cpu", settings["threads"])
    packages = ("hilbertcurve", "numpy-hilbert-curve", "numpy")
    machine["versions"] |= {name: version(name) for name in packages}

    cells = np.random.default_rng(0).integers(0, 2 ** settings["order"], (settings["cells"], 2))
    sample = rivals(cells[:1000], settings["order"])
    expected = [np.asarray(call()) for call in sample["fractal_lib"]]
    for name, calls in sample.items():
        for call, ours in zip(calls, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(call()).astype(np.int64), ours, err_msg=name)

    calls = rivals(cells, settings["order"])
    taken = {name: ([], []) for name in calls}
    for _ in range(TURNS):  # in turns, so that whatever else the machine does hits all alike
        for name, pair in calls.items():
            for call, times in zip(pair, taken[name], strict=True):
                times.append(seconds(call))
    rows = [
        {"name": name, "encode": min(encode), "decode": min(decode)}
        for name, (encode, decode) in taken.items()
    ]
    print(
        f"{settings['cells']:,} cells, order {settings['order']}, {settings['threads']} thread(s)"
    )
    for row in rows:
        print(f"{row['name']:<20} encode {row['encode']:8.3f} s   decode {row['decode']:8.3f} s")
    if file:
        machine["load_average_after"] = load_average()
        file.write_text(json.dumps(machine | {"settings": settings, "rows": rows}, indent=1) + "\n")
        print(f"written to {file}")


if __name__ == "__main__":
    main()
