"""Burgers' equation on a circle, u_t + u u_x = nu u_xx, solved by Fourier series."""

import torch
from torch import Tensor

from fractal_lib.checks import as_int

__all__ = ["burgers", "random_start"]


def random_start(count: int, n: int, generator: torch.Generator) -> Tensor:
    """Smooth random functions on n points of a circle of length 1: (count, n) float64.

    Normal, of mean 0, with covariance 625 (25 - d^2/dx^2)^-2, less its constant part.

    Raises:
        ValueError, TypeError: for sizes that are not whole numbers, or below 1 and 4.

    Source: the initial conditions of Li et al., Fourier Neural Operator (2021), section 5.1.

    >>> random_start(2, 8, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 8])
    """
    count, n = as_int(count, "count", least=1), as_int(n, "n", least=4)
    wave = 2 * torch.pi * torch.arange(1, n // 2, dtype=torch.float64)
    # the standard deviation of a cosine's and of a sine's coefficient
    scale = 2**0.5 * 25 / (wave.square() + 25)
    cos, sin = scale * torch.randn(2, count, len(wave), generator=generator, dtype=torch.float64)
    angle = wave[:, None] * torch.arange(n) / n  # (waves, n)
    return cos @ angle.cos() + sin @ angle.sin()


def burgers(start: Tensor, time: float = 1.0, nu: float = 0.01, steps: int = 1000) -> Tensor:
    """u at a time, from u at 0.

    Args:
        start: (..., n) real, at the points i / n of a circle of length 1, n even.
        time: 0 or more.
        nu: viscosity, 0 or more.
        steps: of equal length.

    Returns:
        (..., n), float64.

    Raises:
        ValueError: for an n that is odd or below 4, or less than one step.

    Complexity: O(steps n log n), float64. Diffusion is exact (an integrating factor), the rest by
    the classical Runge-Kutta scheme, of order four; the upper third of the waves is left out of the
    product, so that nothing is aliased. Source: Canuto et al., Spectral Methods (2006), chapters 3
    and D; Orszag (1971) for the two thirds.

    >>> x = torch.arange(64, dtype=torch.float64) / 64
    >>> wave = 1e-6 * (2 * torch.pi * x).sin()  # so small that it only decays
    >>> left = burgers(wave, time=1.0, nu=0.02, steps=10)
    >>> torch.allclose(left, wave * torch.tensor(-0.02 * 4 * torch.pi**2).exp(), atol=1e-11)
    True
    """
    n, steps = start.shape[-1], as_int(steps, "steps", least=1)
    if n < 4 or n % 2:
        raise ValueError(f"the number of points must be even and at least 4, got {n}")
    wave = 2 * torch.pi * torch.arange(n // 2 + 1, dtype=torch.float64, device=start.device)
    step = time / steps
    half = (-nu * wave.square() * step / 2).exp()  # diffusion over half a step
    kept = torch.arange(n // 2 + 1, device=start.device) <= n // 3

    def change(u: Tensor) -> Tensor:
        square = torch.fft.irfft(u * kept, n).square()
        return -0.5j * wave * kept * torch.fft.rfft(square) * step

    u = torch.fft.rfft(start.double())
    for _ in range(steps):
        a = change(u)
        b = change(half * (u + a / 2))
        c = change(half * u + b / 2)
        d = change(half * half * u + half * c)
        u = half * half * u + (half * half * a + 2 * half * (b + c) + d) / 6
    return torch.fft.irfft(u, n)
