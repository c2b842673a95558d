"""What a latent SDE has to beat on motion capture: three baselines that nobody reports, and the
published figures beside them.

Three frames of a walk are given, and the other 297 are forecast. The figure is the mean square
error over those frames, all channels and the four test sequences.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Clock
from fractal_lib.data.mocap import GIVEN, Mocap, mocap
from fractal_lib.progress import progress_bar

__all__ = ["PUBLISHED", "RIVALS", "mocap_rivals"]

PUBLISHED: dict[str, tuple[float, float | None, str]] = {
    "DTSBN-S": (34.86, None, "Gan et al. (2015)"),
    "npODE": (22.96, None, "Heinonen et al. (2018)"),
    "neural ODE": (22.49, None, "Chen et al. (2018)"),
    "ODE2VAE": (10.06, None, "Yildiz, Heinonen and Lahdesmaki (2019)"),
    "ODE2VAE-KL": (8.09, None, "Yildiz, Heinonen and Lahdesmaki (2019)"),
    "latent SDE": (4.03, 0.20, "Li, Wong, Chen and Duvenaud (2020)"),
    "ARCTA": (7.62, None, "Course and Nair (2023)"),
    "SDE Matching": (4.50, 0.32, "Bartosh, Vetrov and Naesseth (2025)"),
}
"""Name to mean square error on the test sequences, half the width of its 95 % interval where one is
given, and whose the method is; the first three as Yildiz et al. (2019) report them, the later ones
as Bartosh et al. (2025) do."""

STUDENT = 3.182446  # the 0.975 quantile with three degrees of freedom
RIDGES = tuple(float(f"{ridge:.3g}") for ridge in 10.0 ** np.arange(-2, 5.1, 0.5))
Predicted = tuple[np.ndarray, dict]


def mean_frame(data: Mocap, given: np.ndarray) -> Predicted:
    """The mean of all frames of training, for ever."""
    frame = data.train.mean((0, 1))
    return np.broadcast_to(frame, (*_shape(data, given), len(frame))), {}


def nearest(data: Mocap, given: np.ndarray) -> Predicted:
    """As the training sequence went on from where three of its frames are nearest to those given;
    from its end, from where the last three forecast are nearest.
    """
    train, steps = data.train, _shape(data, given)[1]
    # every start after which at least one frame follows
    windows = np.stack([train[:, i : i - GIVEN] for i in range(GIVEN)], 2)  # (S, W, GIVEN, X)
    forecasts = []
    for frames in given:
        path = list(frames)
        while len(path) < GIVEN + steps:
            error = ((windows - np.stack(path[-GIVEN:])) ** 2).sum((2, 3))
            if len(path) == GIVEN:  # as far as it goes, from a start that goes on for a while
                error[:, error.shape[1] // 2 :] = np.inf
            series, start = np.unravel_index(error.argmin(), error.shape)
            path += list(train[series, start + GIVEN :])
        forecasts.append(np.stack(path[GIVEN : GIVEN + steps]))
    return np.stack(forecasts), {}


def _rollout(data: Mocap, given: np.ndarray, ridge: float) -> np.ndarray:
    """A vector autoregression of order `GIVEN`, by ridge regression, fed with its own forecasts."""
    centre, steps = data.train.mean((0, 1)), _shape(data, given)[1]
    train, frames, channels = data.train - centre, data.train.shape[1], len(centre)
    lags = [train[:, i : frames - GIVEN + i] for i in range(GIVEN)]
    past = np.concatenate(lags, 2).reshape(-1, GIVEN * channels)
    following = train[:, GIVEN:].reshape(-1, channels)
    penalty = ridge * np.eye(past.shape[1])
    weights = np.linalg.solve(past.T @ past + penalty, past.T @ following)
    path = list((given - centre).swapaxes(0, 1))
    for _ in range(steps):
        path.append(np.concatenate(path[-GIVEN:], 1) @ weights)
    return np.stack(path[GIVEN:], 1) + centre


def _ridges(data: Mocap, given: np.ndarray, chosen_on: np.ndarray) -> Predicted:
    with np.errstate(over="ignore", invalid="ignore"):  # a small ridge may diverge
        errors = [error(_rollout(data, chosen_on[:, :GIVEN], r), chosen_on).mean() for r in RIDGES]
    best = int(np.nanargmin(errors))
    more = {"ridge": RIDGES[best], "ridges": list(RIDGES), "errors_by_ridge": errors}
    return _rollout(data, given, RIDGES[best]), more


def ridge_autoregression(data: Mocap, given: np.ndarray) -> Predicted:
    """Of order three, the ridge chosen on the validation sequences."""
    return _ridges(data, given, data.validation)


def ridge_chosen_on_test(data: Mocap, given: np.ndarray) -> Predicted:
    """The same with the ridge that is best on the test sequences: no forecast, but a warning of
    what choosing there is worth.
    """
    return _ridges(data, given, data.test)


RIVALS: dict[str, Callable[[Mocap, np.ndarray], Predicted]] = {
    "mean frame": mean_frame,
    "nearest neighbour": nearest,
    "ridge autoregression": ridge_autoregression,
    "ridge autoregression, chosen on the test set": ridge_chosen_on_test,
}


def error(forecast: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """(S,) mean square error over the frames that were not given."""
    return ((forecast - sequences[:, GIVEN:]) ** 2).mean((1, 2))


def _shape(data: Mocap, given: np.ndarray) -> tuple[int, int]:
    return len(given), data.train.shape[1] - GIVEN


@case("mocap-rivals", records="mocap-rivals", choices={"only": list(RIVALS)}, packages=("scipy",))
def mocap_rivals(path: Path, only: Sequence[str] | None = None, progress: bool = True) -> dict:
    """Forecast motion capture from three frames by its mean, a neighbour and an autoregression.

    Args:
        path: of the file mocap35.mat, as `fractal_lib.data.mocap` takes it.
        only: these rivals alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        ``runs``: for each rival the mean square error ``mse`` over the test sequences, of every
        sequence, of the validation sequences, and the half width ``interval`` of a 95 % interval
        over the four sequences; and the ``published`` figures.

    Raises:
        ImportError, FileNotFoundError, ValueError: as `fractal_lib.data.mocap`.

    Source: chapter ``posterior/latent_sde``.
    """
    data, runs, todo = mocap(path), [], list(only or RIVALS)
    with progress_bar(len(todo), "mocap-rivals", progress) as step:
        for name in todo:
            with Clock() as clock:
                forecast, more = RIVALS[name](data, data.test[:, :GIVEN])
            each = error(forecast, data.test)
            held, _ = RIVALS[name](data, data.validation[:, :GIVEN])
            run = {"rival": name, "mse": float(each.mean()), "mse_by_sequence": each.tolist()}
            run["interval"] = STUDENT * float(each.std(ddof=1)) / len(each) ** 0.5
            run["validation_mse"] = float(error(held, data.validation).mean())
            runs.append(run | clock.taken() | more)
            print(f"{name}: mean square error {run['mse']:.2f} ({each.round(2).tolist()})")
            step(name)
    published = [
        {"name": name, "mse": mse, "interval": interval, "source": source}
        for name, (mse, interval, source) in PUBLISHED.items()
    ]
    # where the file lies on this machine is nobody's business
    return {"settings": {}, "given": GIVEN, "runs": runs, "published": published}
