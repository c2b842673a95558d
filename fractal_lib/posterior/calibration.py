"""How wide a trained model's predictions should be, by rows that it did not see (chapter
``posterior/irregular``).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fractal_lib.checks import as_int
from fractal_lib.posterior.elbo import LatentSDE
from fractal_lib.posterior.observations import Observations, as_observations
from fractal_lib.posterior.prediction import OCTAVES, scaled
from fractal_lib.posterior.views import Hiding

__all__ = ["calibrate"]

PULL = 1e-3  # towards no change, and of neighbouring octaves towards each other


def calibrate(
    model: LatentSDE, data: Observations, hiding: Hiding, *, rows: int = 20_000, seed: int = 0
) -> tuple[float, ...]:
    """Fit a factor for each length of hole to the log score of hidden rows: how `predict` scales
    its spread.

    The variance of a prediction becomes exp(a(h)) times the path's, plus exp(c) times the noise's,
    with h the variance of a Brownian bridge between the observations around t, in rows, and a(h)
    linear between octaves of 1 + h. Mean and bound stay as they are.

    Args:
        model: trained; its posterior a `LadderPosterior` that reads splines.
        data: `Observations` that it was trained on.
        hiding: how rows are hidden; the views are not those of training.
        rows: hidden rows that are scored, about.
        seed: of the views.

    Returns:
        a at each octave 1 + h = 1, 2, 4 ... 128, and c; the model keeps them as ``calibration``.

    Raises:
        TypeError: for a model, data or hiding of another type. ValueError: for a posterior that
            reads no splines, or if nothing is hidden.

    Complexity: that of a posterior at ``rows`` times, and of 8 views. Source: Gneiting and Raftery
    (2007) for the score; chapter ``posterior/irregular``.
    """
    if not isinstance(model, LatentSDE) or not isinstance(hiding, Hiding):
        got = f"{type(model).__name__} and {type(hiding).__name__}"
        raise TypeError(f"expected a LatentSDE and a Hiding, got {got}")
    seed = as_int(seed, "seed")
    if not hasattr(model.posterior.prepare(as_observations(data)[[0]]), "spread"):
        raise ValueError(
            "calibrate needs a posterior that knows gaps, LadderPosterior(..., gaps=True) with "
            f"splines, got {type(model.posterior).__name__}"
        )
    generator = torch.Generator(as_observations(data).values.device).manual_seed(seed)
    rows, parts = as_int(rows, "rows", least=1), []
    for _ in range(8):
        view = hiding.view(data, generator)
        series, row = (data.rows & ~view.rows).nonzero().unbind(1)
        some = torch.randperm(len(row), generator=generator, device=row.device)[: rows // 8 or 1]
        if len(some):
            parts.append(_scored(model, data, view, series[some], row[some]))
    if not parts:
        raise ValueError("expected rows to hide, got none: a larger share, or more rows")
    gap, path, noise, error = (torch.cat(part) for part in zip(*parts, strict=True))
    return model.set_calibration(_by_log_score(gap, path, noise, error))


@torch.no_grad()
def _scored(
    model: LatentSDE, data: Observations, view: Observations, series: Tensor, row: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of hidden numbers (M,): log(1 + h), variances of path and noise, squared error."""
    prepared = model.posterior.prepare(view)
    t = (data.times[series, row] / data.duration).unsqueeze(1)  # (R, 1)
    q = model.posterior(prepared, series, t)
    mean, std = model.likelihood.predict(q.mean, q.std, **q.factor)
    none = torch.zeros_like(q.std)
    noise = model.likelihood.predict(q.mean, none)[1] ** 2
    error = (data.values[series, row].unsqueeze(1).to(mean) - mean) ** 2
    gap = prepared.spread(series, t).to(mean).expand_as(mean)
    there = torch.ones_like(mean, dtype=torch.bool)
    if data.observed is not None and data.observed.dim() == 3:
        there = data.observed[series, row].unsqueeze(1)
    # a model that never met a hole may have a variance there that is no float
    there = there & std.isfinite() & error.isfinite()
    return gap[there], (std**2 - noise)[there], noise[there], error[there]


def _by_log_score(gap: Tensor, path: Tensor, noise: Tensor, error: Tensor) -> list[float]:
    """Minimum of the mean log score, by Newton's method in its quasi form."""
    gap, path, noise, error = (part.double() for part in (gap, path, noise, error))
    numbers = torch.zeros(OCTAVES + 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        variance = torch.stack(scaled(numbers, gap, path, noise)).sum(0)
        score = (error / variance + variance.log()).mean() / 2
        score = score + PULL * ((numbers**2).mean() + (numbers[:-1].diff() ** 2).sum())
        score.backward()
        return score

    step: Callable[[Any], Any] = optimizer.step
    step(loss)
    return numbers.tolist()
