"""Stochastic processes to learn from, simulated: no download, any length, seeded."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fractal_lib.checks import as_int, as_positive, optional
from fractal_lib.inference.series import as_array

__all__ = ["Simulation", "bursts", "double_well", "long_lorenz", "lorenz", "ornstein_uhlenbeck"]


class Simulation(NamedTuple):
    """Paths of a process on an even grid of times, and noisy observations of them.

    Attributes:
        times: (n,) float64, from 0 to the end, in the unit of the process.
        latent: (B, n, Z) float64, the paths, standardised where the simulator says so.
        observed: (B, n, Z) float64, the paths with noise.
        mean, std: (Z,) float64, what was taken away and divided by to standardise (0 and 1 where
            nothing was).
    """

    times: Tensor
    latent: Tensor
    observed: Tensor
    mean: Tensor
    std: Tensor


def lorenz(
    batch: int,
    n: int = 41,
    end: float = 1.0,
    noise: float = 0.01,
    seed: int = 0,
    inner: int = 100,
    start: Any = None,
) -> Simulation:
    """The stochastic Lorenz system, standardised, as in the experiments with latent SDEs.

    dx = 10 (y - x) dt + .15 x dw,  dy = (28 x - y - x z) dt + .15 y dw,  dz = (x y - 8/3 z) dt +
    .15 z dw,

    from N(0, I), by Euler-Maruyama with ``inner`` steps between two rows; then each coordinate is
    standardised over all paths and times, and noise is added.

    Args:
        batch: B, number of paths.
        n: rows of each, at least 2.
        end: time of the last row; the first is at 0.
        noise: std of the observations' noise, after standardising.
        seed: of numpy's generator.
        inner: steps of the simulation between two rows.
        start: (3,) or (B, 3), where to begin instead of N(0, I), not standardised.

    Raises:
        TypeError: for a size that is not a whole number, or another value that is not a
            number.
        ValueError: for sizes that are too small, an end or a noise that is negative or not finite,
            or a start of another shape.

    Complexity: O(B n inner), a Python loop over n * inner steps. Source: Li, Wong, Chen and
    Duvenaud (2020), section 7; Bartosh, Vetrov and Naesseth (2025), their public notebook.

    >>> simulation = lorenz(batch=4)
    >>> simulation.observed.shape, [round(float(s), 6) for s in simulation.latent.std((0, 1))]
    (torch.Size([4, 41, 3]), [1.0, 1.0, 1.0])
    """
    batch, n, end, noise, seed = _checked(batch, n, end, noise, seed)
    inner = as_int(inner, "inner", least=1)
    generator = np.random.default_rng(seed)
    begin = generator.standard_normal((3, batch)) if start is None else _start(start, batch)

    def step(z, dw, dt):
        x, y, w = z
        return (
            x + 10 * (y - x) * dt + 0.15 * x * dw[0],
            y + (28 * x - y - x * w) * dt + 0.15 * y * dw[1],
            w + (x * y - 8 / 3 * w) * dt + 0.15 * w * dw[2],
        )

    latent = _euler_maruyama(step, begin, n, end, inner, generator)
    mean, std = latent.mean((0, 1)), latent.std((0, 1))
    return _observe((latent - mean) / std, n, end, noise, generator, mean, std)


def _start(start: Any, batch: int) -> np.ndarray:
    """Where the paths begin, (3, B)."""
    start = as_array(start, "start")
    if start.shape not in ((3,), (batch, 3)) or not np.isfinite(start).all():
        raise ValueError(f"expected start as (3,) or {(batch, 3)}, finite, got {start.shape}")
    return np.broadcast_to(start, (batch, 3)).T.copy()


def long_lorenz(
    n: int = 100_000, noise: float = 0.3, missing: float = 0.2, seed: int = 0
) -> tuple[Simulation, Tensor]:
    """One long Lorenz path, noisy and with many gaps: a row every 1/40, missing in bursts of 8 rows
    on average.

    Args:
        n: rows, at least 2.
        noise: as in `lorenz`.
        missing: fraction of rows missing in the long run, in [0, 1).
        seed: of the path, the noise and the gaps.

    Returns:
        the `Simulation`, B = 1, and ``observed`` (n,) bool. The first 40 rows of a path from N(0,
        I) are left out.

    Raises:
        TypeError, ValueError: as `lorenz` and `bursts`.

    Complexity: O(n), 25 steps of a Python loop a row.

    >>> simulation, observed = long_lorenz(n=1000)
    >>> simulation.observed.shape, observed.shape, abs(float(observed.float().mean()) - 0.8) < 0.1
    (torch.Size([1, 1000, 3]), torch.Size([1000]), True)
    """
    n = as_int(n, "n", least=2)
    observed = bursts(n, missing, 8.0, seed)
    begin = lorenz(1, 41, seed=seed, noise=0)
    start = begin.latent[0, -1] * begin.std + begin.mean
    return lorenz(1, n, (n - 1) / 40, noise, seed, inner=25, start=start), observed


def ornstein_uhlenbeck(
    batch: int,
    n: int,
    end: float,
    rate: float = 1.0,
    std: float = 1.0,
    noise: float = 0.1,
    seed: int = 0,
) -> Simulation:
    """Stationary Ornstein-Uhlenbeck paths, exact on the grid: dz = -rate z dt + std sqrt(2 rate)
    dw.

    Args:
        rate: of mean reversion, per unit of time.
        std: of z at any time.

    The others are as in `lorenz`; nothing is standardised.

    Raises:
        TypeError, ValueError: as `lorenz`; for a rate or std that is not positive.
        ImportError: if scipy is not installed.

    Complexity: O(B n). Source: Uhlenbeck and Ornstein (1930).

    >>> ornstein_uhlenbeck(batch=5, n=100, end=10.0).latent.shape
    torch.Size([5, 100, 1])
    """
    batch, n, end, noise, seed = _checked(batch, n, end, noise, seed)
    rate, std = as_positive(rate, "rate"), as_positive(std, "std")
    lfilter = optional("scipy.signal", "ornstein_uhlenbeck()").lfilter
    generator = np.random.default_rng(seed)
    kept = np.exp(-rate * end / (n - 1))
    process_noise = std * generator.standard_normal((batch, n))
    process_noise[:, 1:] *= np.sqrt(1 - kept**2)
    # z_j = kept z_(j-1) + process noise
    latent = torch.from_numpy(lfilter([1.0], [1.0, -kept], process_noise, axis=1)).unsqueeze(-1)
    return _observe(latent, n, end, noise, generator, torch.zeros(1), torch.ones(1))


def double_well(
    batch: int,
    n: int,
    end: float,
    steepness: float = 4.0,
    diffusion: float = 1.0,
    noise: float = 0.1,
    seed: int = 0,
) -> Simulation:
    """A particle in two wells at -1 and 1: dz = steepness z (1 - z^2) dt + diffusion dw, from one
    of the wells.

    In the long run its density is proportional to exp(2 U / diffusion^2), U = steepness (z^2 / 2 -
    z^4 / 4).

    Args:
        steepness, diffusion: as above; the larger the first against the square of the second, the
            rarer the jumps.

    The others are as in `lorenz`; nothing is standardised.

    Raises:
        TypeError, ValueError: as `lorenz`; for a steepness or diffusion that is not positive.

    Complexity: O(B steepness end), by Euler-Maruyama with steps of 1 / (50 steepness) at most.

    >>> double_well(batch=5, n=100, end=10.0).latent.shape
    torch.Size([5, 100, 1])
    """
    batch, n, end, noise, seed = _checked(batch, n, end, noise, seed)
    steepness = as_positive(steepness, "steepness")
    diffusion = as_positive(diffusion, "diffusion")
    generator = np.random.default_rng(seed)
    begin = generator.choice([-1.0, 1.0], (1, batch))
    # a step is a fiftieth of the time in which a well pulls back
    inner = math.ceil(50 * steepness * end / (n - 1))
    latent = _euler_maruyama(
        lambda z, dw, dt: (z[0] + steepness * z[0] * (1 - z[0] * z[0]) * dt + diffusion * dw[0],),
        begin,
        n,
        end,
        inner,
        generator,
    )
    return _observe(latent, n, end, noise, generator, torch.zeros(1), torch.ones(1))


def bursts(n: int, missing: float, mean_length: float, seed: int = 0) -> Tensor:
    """Which rows are observed when they go missing in bursts, whose lengths are geometric.

    Args:
        n: rows.
        missing: fraction of rows missing, in the long run; in [0, 1).
        mean_length: of a burst, in rows, at least 1.
        seed: of numpy's generator.

    Returns:
        (n,) bool, False where missing. The first row and the last are always there.

    Raises:
        TypeError: for what is not a number. ValueError: for one out of bounds.

    Complexity: O(n).

    >>> bursts(12, missing=0.4, mean_length=2.0, seed=1).long()
    tensor([1, ..., 1])
    """
    n, seed = as_int(n, "n", least=1), as_int(seed, "seed", least=0)
    mean_length = as_positive(mean_length, "mean_length")
    missing = float(as_array(missing, "missing"))
    if not 0 <= missing < 1 or mean_length < 1:
        raise ValueError(
            f"expected missing in [0, 1) and mean_length >= 1; got {missing} and {mean_length}"
        )
    generator = np.random.default_rng(seed)
    between = mean_length * (1 - missing) / missing if missing else np.inf
    lengths, there, total = [], [], 0
    while total < n:
        run = generator.geometric(min(1 / between, 1)) if missing else n
        lengths += [run, generator.geometric(1 / mean_length)]
        there += [True, False]
        total += lengths[-1] + run
    observed = torch.from_numpy(np.repeat(there, lengths)[:n].copy())
    observed[[0, -1]] = True
    return observed


def _checked(batch, n, end, noise, seed) -> tuple[int, int, float, float, int]:
    batch, n = as_int(batch, "batch", least=1), as_int(n, "n", least=2)
    end, noise = as_positive(end, "end"), float(as_array(noise, "noise"))
    if not 0 <= noise < math.inf:
        raise ValueError(f"expected noise as a finite number of at least 0, got {noise}")
    return batch, n, end, noise, as_int(seed, "seed", least=0)


def _euler_maruyama(
    step: Callable, begin: np.ndarray, n: int, end: float, inner: int, generator
) -> Tensor:
    """(B, n, Z) from begin (Z, B). A single path is stepped in plain numbers, twenty times as fast
    as arrays of one.
    """
    dt = end / (n - 1) / inner
    single = begin.shape[1] == 1
    z = tuple(begin[:, 0].tolist()) if single else tuple(begin)
    path = [z]
    for _ in range(n - 1):
        dw = generator.standard_normal((inner, *begin.shape)) * dt**0.5
        for increment in dw[:, :, 0].tolist() if single else dw:
            z = step(z, increment, dt)
        path.append(z)
    return (
        torch.from_numpy(np.array(path)).view(n, begin.shape[0], -1).permute(2, 0, 1).contiguous()
    )


def _observe(
    latent: Tensor, n: int, end: float, noise: float, generator, mean: Tensor, std: Tensor
) -> Simulation:
    observed = latent + noise * torch.from_numpy(generator.standard_normal(latent.shape))
    times = torch.linspace(0, end, n, dtype=torch.float64)
    return Simulation(times, latent, observed, mean.double(), std.double())
