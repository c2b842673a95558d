"""The book's real series as tasks: carbon dioxide, glucose, motion capture."""

from collections.abc import Callable

import numpy as np
import torch

from fractal_lib.benchmark.tasks import SYNTHETIC, Task, full_bound, noise_of
from fractal_lib.data.co2 import co2_split
from fractal_lib.data.glucose import glucose_split
from fractal_lib.inference.metrics import scores
from fractal_lib.posterior import Hiding, LatentSDE, Observations, TrainingPlan

__all__ = ["TASKS", "co2_task", "glucose_task", "seasons"]

YEAR = 365.2425  # days


def seasons(years: np.ndarray, harmonics: int = 4) -> np.ndarray:
    """What a linear model knows of carbon dioxide: a parabola, and a season whose amplitude changes
    by a line. Columns (n, 3 + 4 harmonics), at times in years.

    >>> seasons(np.array([0.0, 0.25])).shape
    (2, 19)
    """
    z = (years - years.mean()) / max(np.ptp(years), 1e-12)
    columns = [np.ones_like(z), z, z**2]
    for k in range(1, harmonics + 1):
        for wave in (np.sin(2 * np.pi * k * years), np.cos(2 * np.pi * k * years)):
            columns += [wave, z * wave]
    return np.stack(columns, -1)


def co2_task(seed: int = 0, year: int = 1985) -> Task:
    """Carbon dioxide at Mauna Loa: what a linear model knows, fitted to the weeks of training, is
    taken away; the rest is the latent SDE's. Time is in years.

    Args:
        seed: of the split.
        year: that is held out as a whole.

    >>> task = co2_task()
    >>> task.train.values.shape, task.train.counts.tolist()
    (torch.Size([1, 2284, 1]), [1522])
    """
    series, train, scattered, hidden = co2_split(seed, year)
    years = (series.dates - series.dates[0]).astype(int) / YEAR
    columns = seasons(years)
    known = columns @ np.linalg.lstsq(columns[train], series.values[train], rcond=None)[0]
    rest = series.values - known
    scale = rest[train].std()
    values = torch.from_numpy(rest / scale).float().view(1, -1, 1)
    data = Observations(values, observed=train, duration=float(years[-1]))

    def report(model: LatentSDE) -> dict:
        t = torch.from_numpy(series.t).unsqueeze(0)
        mean, std = (p.double().flatten().numpy() * scale for p in model.predict(data, [0], t))
        parts = {"learnt": train, "scattered": scattered, "year": hidden}
        result = {name: scores(mean[part], std[part], rest[part]) for name, part in parts.items()}
        bound = full_bound(model, data, num_times=256)
        return result | {"noise": noise_of(model)[0] * scale, **bound}

    plan = TrainingPlan(
        steps=600, num_times=256, lr=3e-3, schedule="cosine", hiding=Hiding(longest=60)
    )
    ladder = {"levels": 8, "init_logstd": -1.5}
    return Task(data, plan, report, 1, 64, 0.2, learn_noise=True, ladder=ladder)


def glucose_task(seed: int = 0) -> Task:
    """Two hundred days of glucose, at exact times: the logarithm, standardised; time is in hours.

    Args:
        seed: of the split.

    >>> task = glucose_task()
    >>> task.train
    Observations(series=1, n=42812, channels=1, duration=4814.1, own times, complete, ...)
    """
    record, train, parts = glucose_split(seed)
    log = np.log(record.values)
    centre, scale = log[train].mean(), log[train].std()
    values = torch.from_numpy((log - centre) / scale).float().view(1, -1, 1)
    duration = float(record.times[-1])
    data = Observations(values[:, train], record.times[train][None], duration=duration)
    shares = torch.from_numpy(record.times / duration)

    def report(model: LatentSDE) -> dict:
        found = [model.predict(data, [0], part.unsqueeze(0)) for part in shares.split(10_000)]
        mean, std = (
            torch.cat(part, 1).double().flatten().numpy() for part in zip(*found, strict=True)
        )
        mean, std = mean * scale + centre, std * scale
        every = {"learnt": train, **parts}
        # in mg/dl: the median, and the spread to first order
        level = np.exp(mean)
        result = {
            name: scores(level[part], (level * std)[part], record.values[part])
            for name, part in every.items()
        }
        bound = full_bound(model, data, draws=20, num_times=1024)
        return result | {"noise": noise_of(model)[0] * scale, **bound}

    plan = TrainingPlan(
        steps=1000,
        num_times=256,
        lr=3e-3,
        schedule="cosine",
        grad_clip=1e4,
        hiding=Hiding(longest=150, stretches=0.2, views=8, weight=5.0),
    )
    n = round(duration * 12) + 1  # a row every five minutes
    ladder = {"levels": 10}
    return Task(data, plan, report, 2, 64, 0.05, learn_noise=True, n=n, ladder=ladder)


TASKS: dict[str, Callable[..., Task]] = {**SYNTHETIC, "co2": co2_task, "glucose": glucose_task}
