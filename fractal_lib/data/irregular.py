"""Simulated paths seen at random times, of each path its own."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fractal_lib.checks import as_int
from fractal_lib.data.simulate import Simulation, lorenz

__all__ = ["IrregularSimulation", "irregular", "irregular_lorenz"]


class IrregularSimulation(NamedTuple):
    """Paths of a process, observed with noise at irregular times, padded to one length.

    Attributes:
        times: (B, N) float64, sorted, distinct, in the unit of the process; behind a series' end
            its last is repeated.
        values: (B, N, Z) float64, with noise; NaN behind the end.
        observed: (B, N) bool, False behind the end.
        grid: (G,) float64, even times from 0 to the end.
        latent: (B, G, Z) float64, the paths without noise there, to be judged by.
    """

    times: Tensor
    values: Tensor
    observed: Tensor
    grid: Tensor
    latent: Tensor


def irregular(
    simulation: Simulation, least: int = 50, most: int = 150, even: int = 101, seed: int = 0
) -> IrregularSimulation:
    """Of each path a random number of rows, at random: irregular times by nature.

    Times are rows of the simulation's grid, so that nothing is interpolated: let it be fine, as its
    step is what they are rounded to.

    Args:
        simulation: on an even grid of n rows, with noise.
        least, most: observations of a path, uniform between them, both ends included.
        even: rows of the grid to be judged by; n - 1 must be a multiple of even - 1.
        seed: of numpy's generator, for the number and the times.

    Raises:
        TypeError: for what is not a whole number. ValueError: for numbers out of bounds.

    Complexity: O(B n).

    >>> sample = irregular(lorenz(4, n=2001, noise=0.05, inner=2))
    >>> sample.values.shape[2], sample.latent.shape, bool((sample.observed.sum(1) >= 50).all())
    (3, torch.Size([4, 101, 3]), True)
    """
    batch, n, _ = simulation.observed.shape
    least = as_int(least, "least", least=1, most=n)
    most = as_int(most, "most", least=least, most=n)
    even = as_int(even, "even", least=2, most=n)
    if (n - 1) % (even - 1):
        raise ValueError(f"expected n - 1 as a multiple of even - 1, got {n - 1} and {even - 1}")
    generator = np.random.default_rng(as_int(seed, "seed", least=0))
    counts = generator.integers(least, most, batch, endpoint=True)  # (B,)
    rows = np.zeros((batch, int(counts.max())), dtype=np.int64)
    for series, count in enumerate(counts):
        chosen = np.sort(generator.choice(n, count, replace=False))
        rows[series] = np.pad(chosen, (0, rows.shape[1] - count), "edge")
    index = torch.from_numpy(rows)
    observed = torch.arange(rows.shape[1]) < torch.from_numpy(counts).unsqueeze(1)
    values = simulation.observed[torch.arange(batch).unsqueeze(1), index]  # (B, N, Z)
    values = values.masked_fill(~observed.unsqueeze(2), float("nan"))
    stride = (n - 1) // (even - 1)
    return IrregularSimulation(
        simulation.times[index],
        values,
        observed,
        simulation.times[::stride],
        simulation.latent[:, ::stride],
    )


def irregular_lorenz(
    batch: int,
    least: int = 50,
    most: int = 150,
    end: float = 1.0,
    noise: float = 0.05,
    seed: int = 0,
) -> IrregularSimulation:
    """The stochastic Lorenz system of `lorenz`, standardised, at random times of each path's own.

    Args:
        batch: B, number of paths.
        least, most: observations of a path.
        end: of the paths; times are multiples of end / 2000.
        noise: std of the observations' noise, after standardising.
        seed: of the paths, the noise and the times.

    Raises:
        TypeError, ValueError: as `lorenz` and `irregular`.

    Complexity: O(B), a Python loop over 4000 steps. Source: as `lorenz`.

    >>> irregular_lorenz(batch=2, least=5, most=5).times.shape
    torch.Size([2, 5])
    """
    return irregular(lorenz(batch, 2001, end, noise, seed, inner=2), least, most, seed=seed)
