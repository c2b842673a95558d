"""The Gaussian marginals of a posterior, with their derivatives in time."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Marginals", "push_forward"]


class Marginals(NamedTuple):
    """q(z_t) = N(mean, std^2) at each t, and the derivatives of both in t; (B, Q, Z) each."""

    mean: Tensor
    std: Tensor
    mean_dt: Tensor
    std_dt: Tensor

    @classmethod
    def of(cls, y: Tensor, dy: Tensor) -> "Marginals":
        """From (mean, log std), (B, Q, 2 Z), and its derivative."""
        (mean, log_std), (mean_dt, log_std_dt) = y.chunk(2, dim=-1), dy.chunk(2, dim=-1)
        std = log_std.exp()
        return cls(mean, std, mean_dt, std * log_std_dt)


def push_forward(net: nn.Sequential, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """``net(x)`` and its directional derivative along ``dx``, for layers that are `Linear` or act
    on each number alone.

    A `Linear` is pushed by hand: forward AD gives its weights tangents without storage, on which a
    compiled gradient fails (PyTorch issue 177261). For the others the Jacobian is diagonal, so that
    reverse AD, which has fused kernels, gives the same as forward AD.

    Args:
        net: layers that take and give one tensor.
        x, dx: (..., in), one shape and dtype.

    Complexity: twice that of the network.

    >>> push_forward(nn.Sequential(nn.SiLU()), torch.zeros(1), torch.ones(1))
    (tensor([0.]), tensor([0.5000]))
    """
    for layer in net:
        if isinstance(layer, nn.Linear):
            x, dx = layer(x), dx @ layer.weight.mT
        else:
            x, gradient, *_ = torch.func.vjp(layer, x)
            (dx,) = gradient(dx)
    return x, dx
