"""The generative model: a prior SDE in the latent, and what is observed of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.checks import as_float, as_int
from fractal_lib.posterior.base import TimeEmbedding

__all__ = ["KnownPrior", "PriorSDE"]


class PriorSDE(nn.Module):
    """dz = h(z, t) dtau + g(z) dw, z_0 ~ N(mean, std^2), with networks for h and each g_i(z_i).

    Args:
        latent_size: Z.
        hidden_size: H, of each network.
        time_embedding: what the drift reads of the time; None (the default) for a drift of z alone.
        device, dtype: of the parameters.

    Functions take (z, t), where torchsde's take (t, y). The diffusion is diagonal, g_i in (0, 1) by
    a sigmoid, and depends on its own coordinate alone. tau is time in the unit of the data's
    duration; t = tau / duration lies in [0, 1].

    Raises:
        TypeError, ValueError: for sizes that are not whole numbers of at least 1.

    Complexity: O(Z H) a point. Source: Bartosh, Vetrov and Naesseth (2025), their public notebook;
    chapter ``posterior/latent_sde``.

    >>> prior = PriorSDE(latent_size=3, hidden_size=16)
    >>> z, t = torch.randn(8, 2, 3), torch.rand(8, 2)
    >>> prior.drift(z, t).shape, prior.diffusion(z, t).shape
    (torch.Size([8, 2, 3]), torch.Size([8, 2, 3]))
    """

    def __init__(
        self,
        latent_size: int,
        hidden_size: int,
        time_embedding: TimeEmbedding | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.latent_size = as_int(latent_size, "latent_size", least=1)
        self.hidden_size = as_int(hidden_size, "hidden_size", least=1)
        self.time_embedding = time_embedding
        in_features = 0 if time_embedding is None else time_embedding.out_features
        factory: Any = {"device": device, "dtype": dtype}
        self.mean = nn.Parameter(torch.empty(self.latent_size, **factory))
        self.log_std = nn.Parameter(torch.empty(self.latent_size, **factory))
        self.drift_net = nn.Sequential(
            nn.Linear(self.latent_size + in_features, self.hidden_size, **factory),
            nn.Softplus(),
            nn.Linear(self.hidden_size, self.latent_size, **factory),
        )
        # one network of a number a coordinate, all at once: (Z, H) in, (Z, H) out
        shape = self.latent_size, self.hidden_size
        self.inner = nn.Parameter(torch.empty(2, *shape, **factory))
        self.outer = nn.Parameter(torch.empty(*shape, **factory))
        self.bias = nn.Parameter(torch.empty(self.latent_size, **factory))
        self._start()

    def reset_parameters(self) -> None:
        """All parameters as drawn anew."""
        for layer in self.drift_net:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        self.mean.zero_()
        self.log_std.zero_()
        self.inner.uniform_(-1, 1)  # as nn.Linear starts
        for parameter in (self.outer, self.bias):
            parameter.uniform_(-1, 1).div_(self.hidden_size**0.5)

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again: what `save_model` keeps."""
        names = ("latent_size", "hidden_size", "time_embedding")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Sizes."""
        return f"latent_size={self.latent_size}, hidden_size={self.hidden_size}"

    def initial(self) -> tuple[Tensor, Tensor]:
        """Mean and std of z_0, (Z,) each."""
        return self.mean, self.log_std.exp()

    def drift(self, z: Tensor, t: Tensor) -> Tensor:
        """h (..., Z) at z (..., Z) and t (...) in [0, 1]."""
        if self.time_embedding is not None:
            z = torch.cat([z, self.time_embedding(t, z.dtype)[0]], -1)
        return self.drift_net(z)

    def diffusion(self, z: Tensor, t: Tensor) -> Tensor:
        """g (..., Z) > 0 at z (..., Z) and t (...); g_i a function of z_i and t."""
        # (..., Z, H)
        hidden = nn.functional.softplus(z.unsqueeze(-1) * self.inner[0] + self.inner[1])
        return torch.sigmoid((hidden * self.outer).sum(-1) + self.bias)


class KnownPrior(nn.Module):
    """A prior that is given and not learned.

    Args:
        drift, diffusion: functions of z (..., Z) and t (...) in [0, 1], as in `PriorSDE`, to
            tensors of the shape of z or plain numbers; coordinate i of the diffusion must depend on
            z_i and t alone.
        mean, std: of z_0, (Z,) each: tensors, arrays, lists, or numbers if Z = 1.

    Raises:
        TypeError: for functions that are not, or what is not made of numbers.
        ValueError: for shapes that do not fit, a mean that is not finite, a std that is not
            positive and finite, or a diffusion that is 0, not finite, or couples coordinates.

    Complexity: that of the functions.

    >>> prior = KnownPrior(lambda z, t: -2 * z, lambda z, t: 1.0, mean=[0.0], std=[0.5])
    >>> prior.drift(torch.ones(4, 1), torch.zeros(4)).flatten()
    tensor([-2., -2., -2., -2.])
    """

    def __init__(self, drift: Callable, diffusion: Callable, mean: Any, std: Any):
        super().__init__()
        if not callable(drift) or not callable(diffusion):
            raise TypeError(
                "expected drift and diffusion as functions of z and t, got "
                f"{type(drift).__name__} and {type(diffusion).__name__}"
            )
        mean, std = as_float(mean, "mean"), as_float(std, "std")
        mean, std = (part.detach().reshape(-1) if part.dim() == 0 else part for part in (mean, std))
        if mean.dim() != 1 or mean.shape != std.shape or not len(mean):
            raise ValueError(
                f"expected mean and std (Z,), got {tuple(mean.shape)} and {tuple(std.shape)}"
            )
        if not bool(((std > 0) & std.isfinite() & mean.isfinite()).all()):
            raise ValueError(f"expected mean finite and std > 0, got {mean} and {std}")
        self.latent_size, self._drift, self._diffusion = len(mean), drift, diffusion
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.to(mean))
        self._check_functions()

    def _check_functions(self) -> None:
        """Shapes; and each g_i must be a function of z_i and t alone: the loss takes its derivative
        so.
        """
        noise = torch.randn(3, len(self.mean), generator=torch.Generator().manual_seed(0))
        z = self.mean + self.std * noise.to(self.mean)
        t = torch.full((3,), 0.37, dtype=z.dtype, device=z.device)
        self.drift(z, t)
        g = self.diffusion(z, t).detach()
        if not bool((g.isfinite() & (g != 0)).all()):
            raise ValueError(f"expected the diffusion finite and not 0, got {g.tolist()}")
        jacobian = torch.func.jacrev(lambda z: self.diffusion(z, t[0]))(z[0])
        if bool((jacobian - torch.diag(jacobian.diagonal())).any()):
            raise ValueError(
                "the diffusion couples coordinates: expected g_i as a function of z_i and t alone"
            )

    def extra_repr(self) -> str:
        """Its size."""
        return f"latent_size={self.latent_size}"

    def initial(self) -> tuple[Tensor, Tensor]:
        """Mean and std of z_0, (Z,) each."""
        return self.mean, self.std

    def drift(self, z: Tensor, t: Tensor) -> Tensor:
        """h (..., Z)."""
        return _shaped(self._drift(z, t), z, "drift")

    def diffusion(self, z: Tensor, t: Tensor) -> Tensor:
        """g (..., Z)."""
        return _shaped(self._diffusion(z, t), z, "diffusion")


def _shaped(value: Any, z: Tensor, name: str) -> Tensor:
    """What a user's function returned, of the shape of z; one number stands for all."""
    value = torch.as_tensor(value, device=z.device)
    if value.dim() == 0:
        value = value.to(z.dtype).expand_as(z)
    if value.shape != z.shape:
        raise ValueError(
            f"expected the {name} of the shape of z, {tuple(z.shape)}, got {tuple(value.shape)}"
        )
    return value
