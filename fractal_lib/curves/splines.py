"""The cubic B-spline and the grid points under it: the weights of the ladder and of every smooth
path.

Chapter ``start/ladder``.
"""

import torch
from torch import Tensor

__all__ = ["bspline", "bspline_weights", "stencil"]


def stencil(x: Tensor, stride: Tensor | int) -> tuple[Tensor, Tensor]:
    """The four points of the grid of a given stride around each position.

    Four points on each of the strides 1, 2, 4, ...: a set of 4 log2(n) positions that is fine near
    ``x`` and coarse far away, the same at every scale.

    Args:
        x: positions in rows, float, any shape (float64 keeps them exact up to 2**53).
        stride: positive int, or an int64 tensor that broadcasts with ``x``.

    Returns:
        node: int64, shape of ``x / stride`` plus (4,). The points are ``node * stride``; some may
            lie outside [0, n), which is for the caller to weigh with 0.
        fraction: shape of ``x / stride``, in [0, 1): how far ``x`` is past the second point, in
            strides.

    Complexity: O(1) per position and stride. Source: chapter ``start/ladder``.

    >>> node, fraction = stencil(torch.tensor([5.5], dtype=torch.float64), 2)
    >>> node * 2, fraction
    (tensor([[2, 4, 6, 8]]), tensor([0.7500], dtype=torch.float64))
    """
    u = x / stride
    base = u.detach().floor()
    return base.long().unsqueeze(-1) + torch.arange(-1, 3, device=x.device), u - base


def bspline_weights(fraction: Tensor, n: int = 0) -> Tensor:
    """Weights of the four grid points around a position: the uniform cubic B-spline, or a
    derivative of it.

    Args:
        fraction: distance past the second of the four points, in strides, in [0, 1); any shape.
        n: 0 for the weights, 1 or 2 for their first or second derivative in ``fraction``.

    Returns:
        shape of ``fraction`` plus (4,). They sum to 1 (a derivative: to 0), are C^2 in the position
        across grid points, and the first (last) is 0 exactly where its point is left behind (comes
        in).

    Raises:
        ValueError: for a derivative other than 0, 1 or 2 (the third derivative jumps).

    Written as polynomials of the fraction and not of |u|, whose second derivative autograd reports
    as 0 at u = 0. Source: de Boor (1978); chapter ``start/ladder``.

    >>> bspline_weights(torch.tensor(0.0)) * 6
    tensor([1., 4., 1., 0.])
    """
    f, g = fraction, 1 - fraction
    f2, g2 = f * f, g * g
    if n == 1:
        return torch.stack([-g2, f * (3 * f - 4), g * (4 - 3 * g), f2], dim=-1) / 2
    if n == 2:
        return torch.stack([g, 3 * f - 2, 3 * g - 2, f], dim=-1)
    if n:
        raise ValueError(f"n must be 0, 1 or 2, got {n}")
    return torch.stack([g2 * g, 4 - 3 * f2 * (1 + g), 4 - 3 * g2 * (1 + f), f2 * f], dim=-1) / 6


def bspline(u: Tensor) -> Tensor:
    """The uniform cubic B-spline at distance u, exactly 0 from 2 on.

    Args:
        u: distance in units of the grid, float, any shape, either sign.

    Returns:
        of the shape of ``u``, 2/3 at 0; C^2, and autograd reports all three derivatives truly.

    Complexity: O(1) each. Source: de Boor (1978); chapter ``start/ladder``.

    >>> bspline(torch.tensor([0.0, 1.0, -2.0])) * 6
    tensor([4., 1., 0.])
    """
    # `where` and not `abs`: autograd takes the slope of |u| at 0 as 0, and loses the curvature
    # there
    u = torch.where(u < 0, -u, u)
    far, near = (2 - u).clamp(min=0), (1 - u).clamp(min=0)
    return (far * far * far - 4 * near * near * near) / 6
