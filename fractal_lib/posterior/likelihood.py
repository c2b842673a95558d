"""What is observed of a latent: the likelihood."""

import torch
from torch import Tensor, nn

__all__ = ["LinearGaussianLikelihood"]


class LinearGaussianLikelihood(nn.Module):
    """x = W z + b + noise.

    Args:
        latent_size, channels: Z and X.
        noise: sd of the noise, before training.
        learn_noise: whether it is trained, one for each channel.

    >>> likelihood = LinearGaussianLikelihood(latent_size=3, channels=2, noise=0.1)
    >>> likelihood.log_prob(torch.zeros(5, 2), torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(self, latent_size: int, channels: int, noise: float, *, learn_noise: bool = False):
        super().__init__()
        if not noise > 0:
            raise ValueError(f"noise must be positive, got {noise}")
        self.net = nn.Linear(latent_size, channels)
        self.log_noise = nn.Parameter(
            torch.full((channels,), noise).log(), requires_grad=learn_noise
        )

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), (...,) for x (..., X) and z (..., Z)."""
        mean = self.net(z)
        return (
            torch.distributions.Normal(mean, self.log_noise.exp(), validate_args=False)
            .log_prob(x)
            .sum(-1)
        )

    def predict(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sd of a new observation, noise included, where z ~ N(mean, std^2): (..., X)
        each.
        """
        variance = (std**2) @ (self.net.weight**2).mT + (2 * self.log_noise).exp()
        return self.net(mean), variance.sqrt()
