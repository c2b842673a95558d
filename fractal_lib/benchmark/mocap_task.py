"""Forecasts of motion capture from three frames, ten times: what stands beside the published
figures.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fractal_lib.benchmark.mocap_cycle import Cycle, fit_cycle
from fractal_lib.benchmark.mocap_rivals import error
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Clock
from fractal_lib.data.mocap import GIVEN, Mocap, mocap
from fractal_lib.progress import progress_bar

__all__ = ["MODELS", "mocap_task"]

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}
"""The 0.975 quantile of Student's t for so many numbers; for ten, and more, 2.262."""

MODELS: dict[str, Callable[[Mocap], np.ndarray]] = {
    "cycle, 16 walks": lambda data: data.train,
    "cycle, 19 walks": lambda data: np.concatenate([data.train, data.validation]),
}
"""Name to the walks that it is fitted to: those of training, or those of validation as well."""


@case("mocap", records="mocap", choices={"only": list(MODELS)}, packages=("scipy",))
def mocap_task(
    path: Path,
    seeds: Sequence[int] = tuple(range(10)),
    samples: int = 128,
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> dict:
    """Forecast motion capture from three frames by a cycle of unknown phase and speed.

    The figure is the mean square error of the mean of the sampled paths, as the public code of
    ARCTA has it; that of a single path, on average, stands beside it.

    Args:
        path: of the file mocap35.mat, as `fractal_lib.data.mocap` takes it.
        seeds: of the paths; the fit has nothing random.
        samples: paths that a forecast is the mean of.
        only: these models alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        ``runs``: for each model and seed the mean square errors ``mse`` and ``path_mse`` over the
        test sequences, and every sequence's. ``summary``: mean and half width of the 95 % interval
        over seeds, and ``left_out``, the ``mse`` of known sequences, each by a fit without it.

    Raises:
        ImportError, FileNotFoundError, ValueError: as `fractal_lib.data.mocap`.

    Source: chapter ``posterior/real_series``.
    """
    data, names, runs, summary = mocap(path), list(only or MODELS), [], []
    with progress_bar(len(names), "mocap", progress) as step:
        for name in names:
            walks = MODELS[name](data)
            with Clock() as clock:
                cycle = fit_cycle(walks)
                found = [_scores(cycle, data.test, samples, seed) for seed in seeds]
            for seed, (whole, single) in zip(seeds, found, strict=True):
                scores = {"mse": float(whole.mean()), "path_mse": float(single.mean())}
                runs.append({"rival": name, "seed": seed, **scores})
                runs[-1]["mse_by_sequence"] = whole.tolist()
            row = {"rival": name, **_over_seeds([whole.mean() for whole, _ in found])}
            row["path_mse"] = float(np.mean([single for _, single in found]))
            row["left_out"] = _left_out(data, walks, samples)
            row |= clock.taken() | {"frames_a_cycle": (2 * np.pi / np.abs(cycle.speeds)).tolist()}
            summary.append(row)
            print(
                f"{name}: mean square error {row['mse']:.2f} +- {row['interval']:.2f}, of a path "
                f"{row['path_mse']:.2f}, left out {row['left_out']}"
            )
            step(name)
    settings = {
        "seeds": list(seeds),
        "samples": samples,
    }  # where the file lies is nobody's business
    return {"settings": settings, "given": GIVEN, "runs": runs, "summary": summary}


def _scores(
    cycle: Cycle, walks: np.ndarray, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(S,) mean square errors of the mean of the paths, and of a path."""
    frames, both = walks.shape[1], []
    for number, walk in enumerate(walks):
        paths = cycle.paths(walk[:GIVEN], frames, samples, [seed, number])[:, GIVEN:]
        one = walk[None]
        both.append((error(paths.mean(0)[None], one)[0], error(paths, one).mean()))
    whole, single = np.array(both).T
    return whole, single


def _left_out(data: Mocap, walks: np.ndarray, samples: int) -> dict[str, float]:
    """Error on sequences of training and of validation, by the model fitted without each."""
    first, errors = len(data.train), []
    for number, walk in enumerate(np.concatenate([data.train, data.validation])):
        rest = np.delete(walks, number, 0) if number < len(walks) else walks
        errors.append(_scores(fit_cycle(rest), walk[None], samples, 0)[0][0])
    return {"train": float(np.mean(errors[:first])), "validation": float(np.mean(errors[first:]))}


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean, and half the width of its 95 % interval: 0 for one."""
    count = len(values)
    spread = float(np.std(values, ddof=1)) if count > 1 else 0.0
    return {
        "mse": float(np.mean(values)),
        "interval": STUDENT.get(count, 2.262) * spread / count**0.5,
    }
