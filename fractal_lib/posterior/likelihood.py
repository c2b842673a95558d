"""What is observed of a latent: the likelihood."""

from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.checks import as_float, as_int, as_mask, as_positive

__all__ = ["LinearGaussianLikelihood"]


class LinearGaussianLikelihood(nn.Module):
    """x = W z + b + noise.

    Args:
        latent_size, channels: Z and X.
        noise: std of the noise, before training.
        learn_noise: whether it is trained, one for each channel.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        TypeError, ValueError: for sizes below 1, or a noise that is not a positive number.

    Complexity: O(Z X) an observation.

    >>> likelihood = LinearGaussianLikelihood(latent_size=3, channels=2, noise=0.1)
    >>> likelihood.log_prob(torch.zeros(5, 2), torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        latent_size: int,
        channels: int,
        noise: float,
        *,
        learn_noise: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.latent_size = as_int(latent_size, "latent_size", least=1)
        self.channels = as_int(channels, "channels", least=1)
        self.initial_noise = as_positive(noise, "noise")
        self.net = nn.Linear(self.latent_size, self.channels, device=device, dtype=dtype)
        log_noise = torch.empty(self.channels, device=device, dtype=dtype)
        self.log_noise = nn.Parameter(log_noise, requires_grad=learn_noise)
        self._reset_noise()

    def reset_parameters(self) -> None:
        """All parameters as drawn anew."""
        self.net.reset_parameters()
        self._reset_noise()

    @torch.no_grad()
    def _reset_noise(self) -> None:
        self.log_noise.fill_(self.initial_noise).log_()

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again: what `save_model` keeps."""
        return {
            "latent_size": self.latent_size,
            "channels": self.channels,
            "noise": self.initial_noise,
            "learn_noise": self.log_noise.requires_grad,
        }

    def extra_repr(self) -> str:
        """Sizes, and whether the noise is trained."""
        return (
            f"latent_size={self.latent_size}, channels={self.channels}, "
            f"learn_noise={self.log_noise.requires_grad}"
        )

    def log_prob(self, x: Any, z: Any, observed: Any = None) -> Tensor:
        """log p(x | z), (...,) for x (..., X) and z (..., Z), of the channels that were observed.

        Args:
            x, z: floating point.
            observed: (..., X) bool, or None for all; what stands in the others is not read.

        Raises:
            ValueError: for another number of channels: nothing is repeated to fit.
        """
        x, z = as_float(x, "x"), as_float(z, "z")
        if x.shape[-1:] != (self.channels,) or z.shape[-1:] != (self.latent_size,):
            raise ValueError(
                f"expected x (..., {self.channels}) and z (..., {self.latent_size}), got "
                f"{tuple(x.shape)} and {tuple(z.shape)}"
            )
        normal = torch.distributions.Normal(self.net(z), self.log_noise.exp(), validate_args=False)
        return _of_observed(normal, x, observed)

    def log_predictive(
        self,
        x: Tensor,
        mean: Tensor,
        std: Tensor,
        observed: Tensor | None = None,
        *,
        scale: Tensor | None = None,
    ) -> Tensor:
        """log density (...,) of observations x (..., X), channel by channel, where z ~ N(mean,
        std^2), (..., Z) both; with a ``scale`` as in `predict`.
        """
        normal = torch.distributions.Normal(*self.predict(mean, std, scale), validate_args=False)
        return _of_observed(normal, x, observed)

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Observations (..., X) of z (..., Z), noise included."""
        mean = self.net(z)
        noise = torch.randn(mean.shape, generator=generator, device=z.device, dtype=z.dtype)
        return mean + self.log_noise.exp() * noise

    def predict(
        self, mean: Tensor, std: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and std of a new observation, noise included, where z ~ N(mean, std^2): (..., X)
        each. With a ``scale`` (..., Z, Z) the covariance of z is scale scale^T, and std is not
        read.
        """
        if scale is None:
            path = (std**2) @ (self.net.weight**2).mT
        else:
            path = (self.net.weight @ scale).square().sum(-1)
        variance = path + (2 * self.log_noise).exp()
        return self.net(mean), variance.sqrt()


def _of_observed(normal: torch.distributions.Normal, x: Tensor, observed: Any) -> Tensor:
    """Log density of the channels that were observed, (...,)."""
    if observed is None:
        return normal.log_prob(x).sum(-1)
    observed = as_mask(observed, device=x.device)
    return torch.where(observed, normal.log_prob(torch.where(observed, x, 0)), 0).sum(-1)
