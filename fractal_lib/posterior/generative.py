"""The generative model: a prior SDE in the latent, and what is observed of it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fractal_lib.posterior.posteriors import Clock


class PriorSDE(nn.Module):
    """dz = h(z, t) dtau + g(z) dw, z_0 ~ N(mean, sd^2), with networks for h and each g_i(z_i).

    Args:
        latent_size: Z.
        hidden_size: H, of each network.
        clock: what the drift knows of the time; None (the default) for a drift of z alone.

    The diffusion is diagonal, g_i in (0, 1) by a sigmoid, and depends on its own coordinate alone. tau is time in the
    unit of the data's duration; t = tau / duration lies in [0, 1].

    Source: Bartosh, Vetrov and Naesseth (2025), their public notebook; chapter ``posterior/latent_sde``.

    >>> prior = PriorSDE(latent_size=3, hidden_size=16)
    >>> z, t = torch.randn(8, 2, 3), torch.rand(8, 2)
    >>> prior.drift(z, t).shape, prior.diffusion(z, t).shape
    (torch.Size([8, 2, 3]), torch.Size([8, 2, 3]))
    """

    def __init__(self, latent_size: int, hidden_size: int, clock: Clock | None = None):
        super().__init__()
        self.latent_size, self.clock = latent_size, clock
        told = 0 if clock is None else clock.size
        self.mean, self.log_sd = nn.Parameter(torch.zeros(latent_size)), nn.Parameter(torch.zeros(latent_size))
        self.drift_net = nn.Sequential(
            nn.Linear(latent_size + told, hidden_size), nn.Softplus(), nn.Linear(hidden_size, latent_size)
        )
        # one network of a number a coordinate, all at once: (Z, H) in, (Z, H) out; started as nn.Linear is
        self.inner = nn.Parameter(torch.empty(2, latent_size, hidden_size).uniform_(-1, 1))
        self.outer = nn.Parameter(torch.empty(latent_size, hidden_size).uniform_(-1, 1) / hidden_size**0.5)
        self.bias = nn.Parameter(torch.empty(latent_size).uniform_(-1, 1) / hidden_size**0.5)

    def initial(self) -> tuple[Tensor, Tensor]:
        """Mean and sd of z_0, (Z,) each."""
        return self.mean, self.log_sd.exp()

    def drift(self, z: Tensor, t: Tensor) -> Tensor:
        """h (..., Z) at z (..., Z) and t (...) in [0, 1]."""
        return self.drift_net(z if self.clock is None else torch.cat([z, self.clock(t, z.dtype)[0]], -1))

    def diffusion(self, z: Tensor, t: Tensor) -> Tensor:
        """g (..., Z) > 0 at z (..., Z) and t (...); g_i a function of z_i and t."""
        hidden = nn.functional.softplus(z.unsqueeze(-1) * self.inner[0] + self.inner[1])  # (..., Z, H)
        return torch.sigmoid((hidden * self.outer).sum(-1) + self.bias)


class KnownPrior(nn.Module):
    """A prior that is given and not learned.

    Args:
        drift, diffusion: functions of z (..., Z) and t (...) in [0, 1], as in `PriorSDE`.
        mean, sd: of z_0, (Z,).

    >>> prior = KnownPrior(lambda z, t: -2 * z, lambda z, t: torch.ones_like(z), torch.zeros(1), torch.full((1,), 0.5))
    >>> prior.drift(torch.ones(4, 1), torch.zeros(4)).flatten()
    tensor([-2., -2., -2., -2.])
    """

    def __init__(self, drift: Callable, diffusion: Callable, mean: Tensor, sd: Tensor):
        super().__init__()
        if mean.dim() != 1 or mean.shape != sd.shape or not bool((sd > 0).all()):
            raise ValueError(f"expected mean and sd (Z,) with sd > 0, got {mean} and {sd}")
        self.latent_size, self._drift, self._diffusion = len(mean), drift, diffusion
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)

    def initial(self) -> tuple[Tensor, Tensor]:
        """Mean and sd of z_0, (Z,) each."""
        return self.mean, self.sd

    def drift(self, z: Tensor, t: Tensor) -> Tensor:
        """h (..., Z)."""
        return self._drift(z, t)

    def diffusion(self, z: Tensor, t: Tensor) -> Tensor:
        """g (..., Z)."""
        return self._diffusion(z, t)


class LinearObservation(nn.Module):
    """x = W z + b + noise.

    Args:
        latent_size, channels: Z and X.
        noise: sd of the noise, before training.
        learn_noise: whether it is trained, one for each channel.

    >>> observation = LinearObservation(latent_size=3, channels=2, noise=0.1)
    >>> observation.log_prob(torch.zeros(5, 2), torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(self, latent_size: int, channels: int, noise: float, learn_noise: bool = False):
        super().__init__()
        if not noise > 0:
            raise ValueError(f"noise must be positive, got {noise}")
        self.net = nn.Linear(latent_size, channels)
        self.log_noise = nn.Parameter(torch.full((channels,), noise).log(), requires_grad=learn_noise)

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), (...,) for x (..., X) and z (..., Z)."""
        mean = self.net(z)
        return torch.distributions.Normal(mean, self.log_noise.exp(), validate_args=False).log_prob(x).sum(-1)

    def predict(self, m: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sd of a new observation, noise included, where z ~ N(m, s^2): (..., X) each."""
        variance = (s**2) @ (self.net.weight**2).mT + (2 * self.log_noise).exp()
        return self.net(m), variance.sqrt()
