"""The Gaussian marginals of a posterior, with their derivatives in time."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["CorrelatedMarginals", "Marginals", "push_forward"]


class Marginals(NamedTuple):
    """q(z_t) = N(mean, std^2) at each t, and the derivatives of both in t; (B, Q, Z) each.

    The coordinates of z = mean + std eps are independent given t.
    """

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

    @property
    def factor(self) -> dict[str, Tensor]:
        """What a likelihood's prediction is told beside mean and std: nothing."""
        return {}

    def at(self, times: slice) -> "Marginals":
        """Those at some of the times."""
        return Marginals(*(part[:, times] for part in self))

    def sample(self, eps: Tensor) -> Tensor:
        """z (B, Q, Z), where eps (B, Q, Z) ~ N(0, 1)."""
        return self.mean + self.std * eps

    def velocity(self, eps: Tensor) -> Tensor:
        """dz/dt of a flow that moves the marginals, at z of eps."""
        return self.mean_dt + self.std_dt * eps

    def score(self, eps: Tensor) -> Tensor:
        """d log q / dz at z of eps."""
        return -eps / self.std

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL(q || N(mean, std^2)), (B, Q), for mean and std (Z,)."""
        ratio = self.std / std
        each = ratio**2 + ((self.mean - mean) / std) ** 2 - 1 - 2 * ratio.log()
        return each.sum(-1) / 2

    def step(
        self, eps: Tensor, noise: Tensor, g2: Tensor, push: Tensor, dt: float, duration: float
    ):
        """eps (B, Q, Z) after ``dt``, in units of t, of the process with diffusion g and the drift
        velocity / duration + g^2 score / 2 + push: an Ornstein-Uhlenbeck process whose law without
        push stays N(0, 1). Exact where g, push and std do not change; ``noise`` ~ N(0, 1).
        """
        rate, tau = g2 / (2 * self.std**2), dt * duration
        push = push / self.std * -torch.expm1(-rate * tau) / rate
        return eps * (-rate * tau).exp() + push + (-torch.expm1(-2 * rate * tau)).sqrt() * noise


class CorrelatedMarginals(NamedTuple):
    """q(z_t) = N(mean, scale scale^T) at each t, its derivatives in t, and how the process turns.

    Attributes:
        mean, mean_dt: (B, Q, Z).
        scale, scale_dt: (B, Q, Z, Z), lower triangular, the diagonal of the first positive.
        spin: (B, Q, Z, Z), antisymmetric: eps of z = mean + scale eps turns by it, in radians a
            unit of t. Marginals stay as they are, and do not tell it of a process.

    It has the methods of `Marginals`.
    """

    mean: Tensor
    scale: Tensor
    mean_dt: Tensor
    scale_dt: Tensor
    spin: Tensor

    @classmethod
    def of(cls, y: Tensor, dy: Tensor) -> "CorrelatedMarginals":
        """From mean, log diagonal of the scale, what is below it as a share of its row's diagonal,
        and what is below the spin's, (B, Q, Z (Z + 1)), and its derivative.
        """
        size = math.isqrt(y.shape[-1])
        first, last = slice(2 * size), slice(2 * size, None)
        mean, diagonal, mean_dt, diagonal_dt = Marginals.of(y[..., first], dy[..., first])
        lower, spin = (_below(part, size) for part in y[..., last].chunk(2, -1))
        lower_dt = _below(dy[..., last].chunk(2, -1)[0], size)
        lower = lower + torch.eye(size, dtype=y.dtype, device=y.device)
        diagonal, diagonal_dt = diagonal.unsqueeze(-1), diagonal_dt.unsqueeze(-1)
        scale_dt = diagonal_dt * lower + diagonal * lower_dt
        return cls(mean, diagonal * lower, mean_dt, scale_dt, spin - spin.mT)

    @property
    def std(self) -> Tensor:
        """(B, Q, Z), of each coordinate."""
        return self.scale.norm(dim=-1)

    @property
    def factor(self) -> dict[str, Tensor]:
        """What a likelihood's prediction is told beside mean and std."""
        return {"scale": self.scale}

    def at(self, times: slice) -> "CorrelatedMarginals":
        """Those at some of the times."""
        return CorrelatedMarginals(*(part[:, times] for part in self))

    def sample(self, eps: Tensor) -> Tensor:
        """As `Marginals.sample`."""
        return self.mean + _dot(self.scale, eps)

    def velocity(self, eps: Tensor) -> Tensor:
        """As `Marginals.velocity`."""
        return self.mean_dt + _dot(self.scale_dt, eps) + _dot(self.scale, _dot(self.spin, eps))

    def score(self, eps: Tensor) -> Tensor:
        """As `Marginals.score`."""
        return -_solve(self.scale.mT, eps.unsqueeze(-1), upper=True).squeeze(-1)

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """As `Marginals.kl`."""
        scale = self.scale / std.unsqueeze(-1)
        square = scale.square().sum(-1) + ((self.mean - mean) / std) ** 2
        return (square - 1 - 2 * scale.diagonal(dim1=-2, dim2=-1).log()).sum(-1) / 2

    def step(
        self, eps: Tensor, noise: Tensor, g2: Tensor, push: Tensor, dt: float, duration: float
    ):
        """As `Marginals.step`, by a matrix exponential in float64, O(Z^3)."""
        scale, eye = self.scale.double(), torch.eye(eps.shape[-1]).to(g2.double())
        root = _solve(scale, torch.diag_embed(g2.double().sqrt()))  # of the noise, in eps
        rate = self.spin.double() * dt - root @ root.mT * (dt * duration / 2)
        push = _solve(scale, push.double().unsqueeze(-1)) * (dt * duration)
        # exp of [[rate, push], [0, 0]] has both solutions
        whole = nn.functional.pad(torch.cat([rate, push], -1), (0, 0, 0, 1))
        turn, push = torch.linalg.matrix_exp(whole)[..., :-1, :].split(len(eye), -1)
        values, vectors = torch.linalg.eigh(eye - turn @ turn.mT)
        spread = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
        moved = _dot(turn, eps.double()) + push.squeeze(-1) + _dot(spread, noise.double())
        return moved.to(eps)


def _dot(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def _solve(triangle: Tensor, x: Tensor, upper: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(triangle, x, upper=upper)


def _below(x: Tensor, size: int) -> Tensor:
    """x (..., Z (Z - 1) / 2) below the diagonal of a matrix (..., Z, Z), and 0 elsewhere."""
    row, column = torch.tril_indices(size, size, -1, device=x.device)
    matrix = x.new_zeros(*x.shape[:-1], size, size)
    matrix[..., row, column] = x
    return matrix


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
