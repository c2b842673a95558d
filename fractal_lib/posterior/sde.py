"""The generative model: a prior SDE in the latent, and what is observed of it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fractal_lib.posterior.base import TimeEmbedding

__all__ = ["KnownPrior", "PriorSDE"]


class PriorSDE(nn.Module):
    """dz = h(z, t) dtau + g(z) dw, z_0 ~ N(mean, sd^2), with networks for h and each g_i(z_i).

    Args:
        latent_size: Z.
        hidden_size: H, of each network.
        time_embedding: what the drift reads of the time; None (the default) for a drift of z alone.

    Functions take (z, t), where torchsde's take (t, y). The diffusion is diagonal, g_i in (0, 1) by
    a sigmoid, and depends on its own coordinate alone. tau is time in the unit of the data's
    duration; t = tau / duration lies in [0, 1].

    Source: Bartosh, Vetrov and Naesseth (2025), their public notebook; chapter
    ``posterior/latent_sde``.

    >>> prior = PriorSDE(latent_size=3, hidden_size=16)
    >>> z, t = torch.randn(8, 2, 3), torch.rand(8, 2)
    >>> prior.drift(z, t).shape, prior.diffusion(z, t).shape
    (torch.Size([8, 2, 3]), torch.Size([8, 2, 3]))
    """

    def __init__(
        self, latent_size: int, hidden_size: int, time_embedding: TimeEmbedding | None = None
    ):
        super().__init__()
        self.latent_size, self.time_embedding = latent_size, time_embedding
        in_features = 0 if time_embedding is None else time_embedding.out_features
        self.mean, self.log_sd = (
            nn.Parameter(torch.zeros(latent_size)),
            nn.Parameter(torch.zeros(latent_size)),
        )
        self.drift_net = nn.Sequential(
            nn.Linear(latent_size + in_features, hidden_size),
            nn.Softplus(),
            nn.Linear(hidden_size, latent_size),
        )
        # one network of a number a coordinate, all at once: (Z, H) in, (Z, H) out; started as
        # nn.Linear is
        self.inner = nn.Parameter(torch.empty(2, latent_size, hidden_size).uniform_(-1, 1))
        self.outer = nn.Parameter(
            torch.empty(latent_size, hidden_size).uniform_(-1, 1) / hidden_size**0.5
        )
        self.bias = nn.Parameter(torch.empty(latent_size).uniform_(-1, 1) / hidden_size**0.5)

    def initial(self) -> tuple[Tensor, Tensor]:
        """Mean and sd of z_0, (Z,) each."""
        return self.mean, self.log_sd.exp()

    def drift(self, z: Tensor, t: Tensor) -> Tensor:
        """h (..., Z) at z (..., Z) and t (...) in [0, 1]."""
        return self.drift_net(
            z
            if self.time_embedding is None
            else torch.cat([z, self.time_embedding(t, z.dtype)[0]], -1)
        )

    def diffusion(self, z: Tensor, t: Tensor) -> Tensor:
        """g (..., Z) > 0 at z (..., Z) and t (...); g_i a function of z_i and t."""
        # (..., Z, H)
        hidden = nn.functional.softplus(z.unsqueeze(-1) * self.inner[0] + self.inner[1])
        return torch.sigmoid((hidden * self.outer).sum(-1) + self.bias)


class KnownPrior(nn.Module):
    """A prior that is given and not learned.

    Args:
        drift, diffusion: functions of z (..., Z) and t (...) in [0, 1], as in `PriorSDE`;
            coordinate i of the diffusion must depend on z_i and t alone.
        mean, sd: of z_0, (Z,).

    Raises:
        ValueError: for shapes that do not fit, an sd that is not positive, or a diffusion that
            couples coordinates.

    >>> prior = KnownPrior(lambda z, t: -2 * z, lambda z, t: torch.ones_like(z), torch.zeros(1), torch.full((1,), 0.5))
    >>> prior.drift(torch.ones(4, 1), torch.zeros(4)).flatten()
    tensor([-2., -2., -2., -2.])
    """

    def __init__(self, drift: Callable, diffusion: Callable, mean: Tensor, sd: Tensor):
        super().__init__()
        if mean.dim() != 1 or mean.shape != sd.shape or not bool((sd > 0).all()):
            raise ValueError(f"expected mean and sd (Z,) with sd > 0, got {mean} and {sd}")
        self.latent_size, self._drift, self._diffusion = len(mean), drift, diffusion
        self.mean: Tensor
        self.sd: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)
        self._check_diffusion()

    def _check_diffusion(self) -> None:
        """Each g_i must be a function of z_i and t alone: the loss takes its derivative so."""
        noise = torch.randn(len(self.mean), generator=torch.Generator().manual_seed(0))
        z = self.mean + self.sd * noise.to(self.mean)
        at = torch.full((), 0.37, dtype=z.dtype, device=z.device)
        jacobian = torch.func.jacrev(lambda z: self._diffusion(z, at))(z)
        if bool((jacobian - torch.diag(jacobian.diagonal())).any()):
            raise ValueError(
                "the diffusion couples coordinates: expected g_i as a function of z_i and t alone"
            )

    def initial(self) -> tuple[Tensor, Tensor]:
        """Mean and sd of z_0, (Z,) each."""
        return self.mean, self.sd

    def drift(self, z: Tensor, t: Tensor) -> Tensor:
        """h (..., Z)."""
        return self._drift(z, t)

    def diffusion(self, z: Tensor, t: Tensor) -> Tensor:
        """g (..., Z)."""
        return self._diffusion(z, t)
