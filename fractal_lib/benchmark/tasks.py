"""What the book trains on: data, model and plan of each recorded run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fractal_lib.attention import PATTERNS, ContextAttention
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.benchmark.rivals import SHORT, hole_lengths
from fractal_lib.data.irregular import irregular_lorenz
from fractal_lib.data.simulate import long_lorenz, lorenz, ornstein_uhlenbeck
from fractal_lib.inference.metrics import scores
from fractal_lib.posterior import (
    Hiding,
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Observations,
    PosteriorAffine,
    PriorSDE,
    RecurrentPosterior,
    TimeEmbedding,
    TrainingPlan,
    UltimateFractalPosteriorAffine,
    evaluate,
)


def _head(attention: type[ContextAttention], latent_size: int, hidden_size: int) -> PosteriorAffine:
    return PosteriorAffine(latent_size, hidden_size, attention())


__all__ = [
    "HEADS",
    "POSTERIORS",
    "SYNTHETIC",
    "Task",
    "full_bound",
    "irregular_task",
    "long_task",
    "lorenz_task",
    "noise_of",
    "notebook_task",
    "ou_task",
]

HEADS: dict[str, Callable[[int, int], PosteriorAffine]] = {
    **{name: partial(_head, attention) for name, attention in PATTERNS.items()},
    "ultimate": UltimateFractalPosteriorAffine,
}
BOTH_WAYS = "bidirectional-"  # before a head: behind a GRU that runs both ways
# the first has no recurrence, and so no head
POSTERIORS = ["ladder-posterior", *HEADS, *(f"{BOTH_WAYS}{head}" for head in ("dense", "ultimate"))]


def _likelihood(model: LatentSDE) -> LinearGaussianLikelihood:
    """The likelihood that `Task.build` gave the model."""
    return cast("LinearGaussianLikelihood", model.likelihood)


def noise_of(model: LatentSDE) -> list[float]:
    """Standard deviation of the observation noise of every channel."""
    return _likelihood(model).log_noise.detach().exp().tolist()


@dataclass(frozen=True)
class Task:
    """A data set, the sizes of a model for it, and how it is trained and judged.

    Attributes:
        train: what is learnt from.
        plan: how.
        report: what is recorded of a trained model, by data that were held out.
        latent_size, hidden_size, noise, learn_noise, scaled, time_embedding: of the model.
        n: bins of the ladder, for times of their own.
        ladder: further settings of the ladder posterior.
    """

    train: Observations
    plan: TrainingPlan
    report: Callable[[LatentSDE], dict]
    latent_size: int = 4
    hidden_size: int = 128
    noise: float = 0.01
    learn_noise: bool = False
    scaled: bool = True
    time_embedding: TimeEmbedding | None = None
    n: int | None = None
    ladder: Mapping[str, Any] = field(default_factory=dict)

    def build(self, posterior: str, seed: int = 0, **ladder: Any) -> LatentSDE:
        """A model whose parameters ``seed`` decides; ``posterior`` is one of `POSTERIORS`, and
        ``ladder`` holds settings of the first.
        """
        if posterior not in POSTERIORS:
            raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}, got {posterior!r}")
        torch.manual_seed(seed)
        sizes, data = (self.latent_size, self.hidden_size), self.train
        if posterior == "ladder-posterior":
            settings = {"time_embedding": self.time_embedding, "n": self.n or data.n}
            made = LadderPosterior.of(data, *sizes, **(settings | dict(self.ladder) | ladder))
        else:
            head = HEADS[posterior.removeprefix(BOTH_WAYS)](*sizes)
            made = RecurrentPosterior(
                head,
                data.channels,
                gaps=data.observed is not None,
                bidirectional=posterior.startswith(BOTH_WAYS),
            )
        likelihood = LinearGaussianLikelihood(
            self.latent_size, data.channels, self.noise, learn_noise=self.learn_noise
        )
        return LatentSDE(
            PriorSDE(*sizes, self.time_embedding), likelihood, made, scaled=self.scaled
        )

    def with_plan(self, **changes) -> "Task":
        """The same with another plan: ``steps=100``, say."""
        return replace(
            self, plan=replace(self.plan, **{k: v for k, v in changes.items() if v is not None})
        )


def full_bound(model: LatentSDE, data: Observations, **settings: Any) -> dict[str, float]:
    """What `evaluate` says of the negative ELBO, whatever loss the model was trained by."""
    trained_by, model.scaled = model.scaled, True
    try:
        return evaluate(model, data, **settings)
    finally:
        model.scaled = trained_by


def lorenz_task(
    n: int = 41, noise: float = 0.01, batch_size: int | None = None, part: str = "test"
) -> Task:
    """1024 Lorenz paths on [0, 1], 1024 others to be judged by, and 1024 to choose settings by.

    Args:
        n: rows of a path.
        noise: of the observations.
        batch_size: paths a step.
        part: what it is judged by, "test" or "validation".

    >>> lorenz_task().train.values.shape
    torch.Size([1024, 41, 3])
    """
    if part not in ("test", "validation"):
        raise ValueError(f"part must be 'test' or 'validation', got {part!r}")
    values = lorenz(3072, n, noise=noise, inner=max(4000 // (n - 1), 1)).observed.float()
    train, test, validation = map(Observations, values.split(1024))
    judge = test if part == "test" else validation
    plan = TrainingPlan(
        steps=2500, batch_size=batch_size or (256 if n <= 100 else 64), lr=3e-3, schedule="cosine"
    )
    ladder = {"levels": 3} if n <= 100 else {}
    return Task(train, plan, lambda model: full_bound(model, judge), noise=noise, ladder=ladder)


def notebook_task() -> Task:
    """The same paths, trained as in the method's public notebook: by the loss of one observation,
    all paths at every step, 4000 steps of Adam at a constant rate. Judged by the full bound.
    """
    task = lorenz_task()
    plan = TrainingPlan(steps=4000, batch_size=1024)
    return replace(task, plan=plan, hidden_size=100, scaled=False)


def irregular_task(noise: float = 0.05, binned: bool = False) -> Task:
    """1024 Lorenz paths, each seen at 50 to 150 random times of its own, and 1024 others to be
    judged by.

    Args:
        noise: of the observations.
        binned: as an even grid of 101 rows would have them: the mean of what falls into a row, and
            no times; the judge stays the same.

    >>> irregular_task().train
    Observations(series=1024, n=150, channels=3, duration=1, own times, ... rows observed, ...)
    """
    sample = irregular_lorenz(2048, noise=noise)
    values, times, there = sample.values.float(), sample.times, sample.observed
    halves = slice(1024), slice(1024, None)
    exact = [Observations(values[rows], times[rows], there[rows]) for rows in halves]
    train, test = (_in_bins(data, 101) for data in exact) if binned else exact
    truth = sample.latent[1024:].numpy()  # (1024, 101, 3)
    inside = _inside(exact[1], sample.grid)
    line = _interpolated(exact[1], sample.grid)

    def report(model: LatentSDE) -> dict:
        grid = sample.grid.expand(len(test), -1)
        mean, std = model.predict(test, torch.arange(len(test)), grid, noise=False)
        mean, std = mean.double().numpy(), std.double().numpy()
        found = {"all": np.ones_like(inside), "between observations": inside}
        result: dict[str, Any] = {
            name: scores(mean[rows], std[rows], truth[rows]) for name, rows in found.items()
        }
        for name, rows in found.items():
            result[name]["line_rmse"] = float(np.sqrt(((line - truth)[rows] ** 2).mean()))
        bound = {} if binned else full_bound(model, test, draws=20)
        return result | bound

    plan = TrainingPlan(steps=2500, batch_size=256, lr=3e-3, schedule="cosine")
    return Task(train, plan, report, noise=noise, n=101, ladder={"levels": 3})


def _in_bins(data: Observations, n: int) -> Observations:
    """Means of what falls into each of n even rows."""
    pyramid = Pyramid(data.values, data.rows, data.t, bins=n, levels=1)
    return Observations(pyramid.values, observed=pyramid.counts > 0, duration=data.duration)


def _inside(data: Observations, grid: Tensor) -> np.ndarray:
    """(S, G) bool: between the first and the last observation of each series."""
    times = torch.where(data.rows, data.times, torch.nan)
    first, last = (f(times.numpy(), 1) for f in (np.nanmin, np.nanmax))
    return (grid.numpy() >= first[:, None]) & (grid.numpy() <= last[:, None])


def _interpolated(data: Observations, grid: Tensor) -> np.ndarray:
    """(S, G, X), by straight lines."""
    series = []
    for values, times, rows in zip(data.values, data.times, data.rows, strict=True):
        known = times[rows].numpy()
        columns = values[rows].double().numpy().T
        series.append(np.stack([np.interp(grid.numpy(), known, c) for c in columns], -1))
    return np.stack(series)


def ou_task() -> Task:
    """64 Ornstein-Uhlenbeck paths of 2 units of time, with noise, and 64 others to be judged by.

    >>> ou_task().train.values.shape
    torch.Size([64, 41, 1])
    """
    values = ornstein_uhlenbeck(128, 41, 2.0, rate=2.0, noise=0.5).observed.float()
    train, test = (Observations(part, duration=2.0) for part in (values[:64], values[64:]))
    plan = TrainingPlan(steps=1000, batch_size=64, num_times=8, lr=3e-3, schedule="cosine")
    return Task(train, plan, lambda model: evaluate(model, test), 1, 64, noise=0.5)


def long_task(n: int = 100_000, seed: int = 0) -> Task:
    """One Lorenz series of n noisy rows, a fifth missing in bursts: what was missing is to be
    found. ``seed`` is that of the series.

    >>> long_task(1000).train.values.shape
    torch.Size([1, 1000, 3])
    """
    simulation, observed = long_lorenz(n, seed=seed)
    duration = float(simulation.times[-1])
    data = Observations(simulation.observed.float(), observed=observed, duration=duration)
    t = torch.linspace(0, 1, n, dtype=torch.float64).unsqueeze(0)

    def report(model: LatentSDE) -> dict:
        found = [model.predict(data, [0], part, noise=False) for part in t.split(10_000, 1)]
        mean, std = (torch.cat(part, 1)[0].double().numpy() for part in zip(*found, strict=True))
        truth, there = simulation.latent[0].numpy(), observed.numpy()
        holes = hole_lengths(there)
        parts = {
            "missing": ~there,
            "observed": there,
            "short holes": (holes > 0) & (holes <= SHORT),
            "long holes": holes > SHORT,
        }
        result = {
            name: scores(mean[part], std[part], truth[part])
            for name, part in parts.items()
            if part.any()
        }
        return result | {"noise": noise_of(model)}

    plan = TrainingPlan(
        steps=3000,
        batch_size=1,
        num_times=512,
        lr=3e-3,
        schedule="cosine",
        hiding=Hiding(longest=32, stretches=0.15, scattered=0.05, views=8),
    )
    ladder = {"init_logstd": -1.5}
    return Task(data, plan, report, noise=0.5, learn_noise=True, ladder=ladder)


SYNTHETIC: dict[str, Callable[..., Task]] = {
    "lorenz": lorenz_task,
    "lorenz-notebook": notebook_task,
    "irregular": irregular_task,
    "ou": ou_task,
    "long": long_task,
}
