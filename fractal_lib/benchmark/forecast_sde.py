"""The latent SDE's own forecasts, for `forecast_rivals`: filter up to an origin, then the prior."""

import numpy as np
import torch

from fractal_lib.posterior import (
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Observations,
    PriorSDE,
    TrainingPlan,
    fit,
)

__all__ = ["STEPS", "sde_forecasts", "windows"]

LATENT, HIDDEN, SAMPLES, STEPS = 3, 64, 400, 2000
DURATION = 8.0  # of a window: some hours or years, as the prior's networks begin at a scale of 1


def windows(values: np.ndarray, centres: np.ndarray, ends: np.ndarray, rows: int) -> Observations:
    """The ``rows`` up to each end (O,), as a series of its own, (O, rows, 1), less the centre (n,)
    at its end.

    >>> x = np.arange(10.0)
    >>> windows(x, x, np.array([4, 9]), 3).values[..., 0].tolist()
    [[-2.0, -1.0, 0.0], [-2.0, -1.0, 0.0]]
    """
    parts = values[ends[:, None] + np.arange(1 - rows, 1)] - centres[ends, None]
    parts = torch.from_numpy(parts).float()
    there = parts.isfinite()
    return Observations(parts.nan_to_num().unsqueeze(-1), observed=there, duration=DURATION)


def sde_forecasts(
    values: np.ndarray, centres: np.ndarray, origins: np.ndarray, horizon: int, seed: int = 0
) -> tuple[np.ndarray, dict]:
    """A latent SDE without recurrence whose posterior reads the past alone, trained on windows of
    the rows before the first origin; from an origin on, paths of its prior.

    Args:
        values: (n,) float64 on an even grid, NaN where nothing was observed.
        centres: (n,), what is taken from a window that ends there, and put back.
        origins: (O,) int64, the last row that a forecast knows.
        horizon: rows.
        seed: of everything.

    Returns:
        paths (O, M, horizon), and what is recorded.
    """
    rows, end = 4 * horizon + 1, int(origins[0]) + 1
    ends = np.arange(rows - 1, end, max(1, horizon // 8))
    ends = ends[np.isfinite(values[ends])]
    scale = float(np.nanstd(values[ends[:, None] + np.arange(1 - rows, 1)] - centres[ends, None]))
    train, known = (
        windows(values / scale, centres / scale, where, rows) for where in (ends, origins)
    )
    torch.manual_seed(seed)
    model = LatentSDE(
        PriorSDE(LATENT, HIDDEN),
        LinearGaussianLikelihood(LATENT, 1, 0.1, learn_noise=True),
        LadderPosterior.of(train, LATENT, HIDDEN, causal=True, gaps=True),
    )
    plan = TrainingPlan(
        steps=STEPS,
        batch_size=64,
        num_times=8,
        lr=3e-3,
        schedule="cosine",
        grad_clip=1e3,
        seed=seed,
    )
    loss = fit(model, train, plan, progress=False)["negative_elbo"]
    found = model.forecast(
        known,
        range(len(known)),
        DURATION * horizon / (rows - 1),
        SAMPLES,
        steps=4 * horizon,
        generator=torch.Generator().manual_seed(seed),
    )
    paths = found.values[:, :, 4::4, 0].double().numpy() * scale + centres[origins, None, None]
    return paths, {"steps": STEPS, "seed": seed, "loss": float(np.mean(loss[-50:]))}
