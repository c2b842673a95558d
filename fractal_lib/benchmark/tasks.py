"""What the book trains on: data, model and plan of each recorded run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch

from fractal_lib.attention import PATTERNS, ContextAttention
from fractal_lib.data.co2 import Series, co2, holdout
from fractal_lib.data.simulate import long_lorenz, lorenz, ornstein_uhlenbeck
from fractal_lib.inference.metrics import scores
from fractal_lib.posterior import (
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
    "TASKS",
    "Task",
    "co2_split",
    "co2_task",
    "long_task",
    "lorenz_task",
    "ou_task",
]

HEADS: dict[str, Callable[[int, int], PosteriorAffine]] = {
    **{name: partial(_head, attention) for name, attention in PATTERNS.items()},
    "ultimate": UltimateFractalPosteriorAffine,
}
POSTERIORS = ["ladder-posterior", *HEADS]  # the first has no recurrence, and so no head


def _likelihood(model: LatentSDE) -> LinearGaussianLikelihood:
    """The likelihood that `Task.build` gave the model."""
    return cast("LinearGaussianLikelihood", model.likelihood)


def _noise(model: LatentSDE) -> list[float]:
    """Standard deviation of the observation noise of every channel."""
    return _likelihood(model).log_noise.detach().exp().tolist()


@dataclass(frozen=True)
class Task:
    """A data set, the sizes of a model for it, and how it is trained and judged."""

    train: Observations
    plan: TrainingPlan
    report: Callable[[LatentSDE], dict]
    latent_size: int = 4
    hidden_size: int = 128
    noise: float = 0.01
    learn_noise: bool = False
    scaled: bool = True
    time_embedding: TimeEmbedding | None = None

    def build(self, posterior: str, seed: int = 0, levels: int | None = None) -> LatentSDE:
        """A model whose parameters ``seed`` decides; ``posterior`` is one of `POSTERIORS`."""
        if posterior not in POSTERIORS:
            raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}, got {posterior!r}")
        torch.manual_seed(seed)
        sizes = self.latent_size, self.hidden_size
        if posterior not in HEADS:
            made = LadderPosterior.of(
                self.train, *sizes, levels=levels, time_embedding=self.time_embedding
            )
        else:
            gaps = self.train.observed is not None
            made = RecurrentPosterior(HEADS[posterior](*sizes), self.train.channels, gaps=gaps)
        likelihood = LinearGaussianLikelihood(
            self.latent_size, self.train.channels, self.noise, learn_noise=self.learn_noise
        )
        return LatentSDE(
            PriorSDE(*sizes, self.time_embedding), likelihood, made, scaled=self.scaled
        )

    def with_plan(self, **changes) -> "Task":
        """The same with another plan: ``steps=100``, say."""
        return replace(
            self, plan=replace(self.plan, **{k: v for k, v in changes.items() if v is not None})
        )


def lorenz_task(n: int = 41, noise: float = 0.01, batch_size: int | None = None) -> Task:
    """1024 Lorenz paths on [0, 1] and 1024 others to be judged by.

    With n = 41 and the noise 0.01 of the public experiment, its own loss is kept too, which
    reconstructs one observation; with more rows the negative ELBO, which reconstructs all.

    >>> lorenz_task().train.values.shape
    torch.Size([1024, 41, 3])
    """
    values = lorenz(2048, n, noise=noise, inner=max(4000 // (n - 1), 1)).observed.float()
    train, test = Observations(values[:1024]), Observations(values[1024:])
    plan = TrainingPlan(steps=2500, batch_size=batch_size or (256 if n <= 100 else 64))
    return Task(train, plan, lambda model: evaluate(model, test), noise=noise, scaled=n > 41)


def ou_task() -> Task:
    """64 Ornstein-Uhlenbeck paths of 2 units of time, with noise, and 64 others to be judged by.

    >>> ou_task().train.values.shape
    torch.Size([64, 41, 1])
    """
    values = ornstein_uhlenbeck(128, 41, 2.0, rate=2.0, noise=0.5).observed.float()
    train, test = (Observations(part, duration=2.0) for part in (values[:64], values[64:]))
    plan = TrainingPlan(steps=1000, batch_size=64, num_times=8, lr=3e-3, schedule="cosine")
    return Task(train, plan, lambda model: evaluate(model, test), 1, 64, noise=0.5)


def co2_split(seed: int = 0) -> tuple[Series, np.ndarray, np.ndarray, np.ndarray]:
    """Mauna Loa's weeks: the series, and which are trained on, held out one by one, and held out
    as a whole year.

    Everything that is compared on this record uses this split: 30 % of the weeks, and 1985.

    >>> series, train, scattered, year = co2_split()
    >>> int(train.sum()), int(scattered.sum()), int(year.sum())
    (1522, 652, 51)
    """
    series = co2()
    scattered, year = holdout(
        series.observed, 0.3, seed, series.dates.astype("datetime64[Y]") == np.datetime64("1985")
    )
    return series, series.observed & ~scattered & ~year, scattered, year


def co2_task(seed: int = 0) -> Task:
    """Carbon dioxide at Mauna Loa: a parabola is taken away, the rest is the latent SDE's; time is
    in years.

    >>> task = co2_task()
    >>> task.train.values.shape, task.train.counts.tolist()
    (torch.Size([1, 2284, 1]), [1522])
    """
    series, train, scattered, year = co2_split(seed)
    parabola = np.polyval(np.polyfit(series.t[train], series.values[train], 2), series.t)
    scale = (series.values - parabola)[train].std()
    values = torch.from_numpy((series.values - parabola) / scale).float().view(1, -1, 1)
    years = float((series.dates[-1] - series.dates[0]).astype(int)) / 365.2425
    data = Observations(values, observed=train, duration=years)

    def report(model: LatentSDE) -> dict:
        mean, std = model.predict(data, torch.tensor([0]), torch.from_numpy(series.t).unsqueeze(0))
        mean, std = (part.double().flatten().numpy() * scale for part in (mean, std))
        parts = {"learnt": train, "scattered": scattered, "year": year}
        truth = series.values - parabola
        result = {name: scores(mean[part], std[part], truth[part]) for name, part in parts.items()}
        return result | {
            "noise": _noise(model)[0] * scale,
            **evaluate(model, data, num_times=256),
        }

    plan = TrainingPlan(steps=3000, batch_size=1, num_times=256, lr=3e-3, schedule="cosine")
    return Task(
        data,
        plan,
        report,
        hidden_size=64,
        noise=0.2,
        learn_noise=True,
        time_embedding=TimeEmbedding([1 / years], harmonics=4),
    )


def long_task(n: int = 100_000) -> Task:
    """One Lorenz series of n noisy rows, a fifth missing in bursts: what was missing is to be
    found.

    >>> long_task(1000).train.values.shape
    torch.Size([1, 1000, 3])
    """
    simulation, observed = long_lorenz(n)
    duration = float(simulation.times[-1])
    data = Observations(simulation.observed.float(), observed=observed, duration=duration)
    t = torch.linspace(0, 1, n, dtype=torch.float64).unsqueeze(0)

    def report(model: LatentSDE) -> dict:
        with torch.no_grad():
            paths = [
                model.posterior(context, torch.tensor([0]), part)
                for context in [model.posterior.prepare(data)]
                for part in t.split(10_000, 1)
            ]
            m, s = (
                torch.cat([getattr(part, name) for part in paths], 1)[0] for name in ("mean", "std")
            )
            net = _likelihood(model).net
            mean, std = net(m), ((s**2) @ (net.weight**2).mT).sqrt()
        truth = simulation.latent[0].numpy()
        mean, std, there = mean.double().numpy(), std.double().numpy(), observed.numpy()
        parts = {"missing": ~there, "observed": there}
        result = {name: scores(mean[part], std[part], truth[part]) for name, part in parts.items()}
        return result | {"noise": _noise(model)}

    plan = TrainingPlan(steps=6000, batch_size=1, num_times=1024, lr=2e-3, schedule="cosine")
    return Task(data, plan, report, noise=0.5, learn_noise=True)


TASKS = {"lorenz": lorenz_task, "ou": ou_task, "co2": co2_task, "long": long_task}
