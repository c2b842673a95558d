"""A posterior without recurrence: it reads the observations' own pyramid (chapter
``posterior/latent_sde``).
"""

from typing import Any

import torch
from torch import nn

from fractal_lib.checks import as_int, as_positive
from fractal_lib.posterior.base import Posterior, TimeEmbedding, as_times
from fractal_lib.posterior.features import DataPyramid, features_of, levels_of
from fractal_lib.posterior.heads import affine_net
from fractal_lib.posterior.marginals import Marginals, push_forward
from fractal_lib.posterior.observations import Observations, as_observations

__all__ = ["LadderPosterior"]

NAMES = ("n", "channels", "duration")


class LadderPosterior(Posterior):
    """A posterior that costs the same however long the series: it reads the observations, and
    encodes nothing.

    The value and the slope of the data at every scale around t, `DataPyramid.read`, go through the
    network of `PosteriorAffine`, and the mean has a linear part beside it. There is no recurrence
    and no header. (m, s) is continuous in t, and its derivative is exact.

    Args:
        latent_size: Z.
        hidden_size: H.
        channels: X.
        n: rows of a series; for times of their own, the bins of level 0.
        duration: T, of the series.
        levels: number of levels, of those that n has; default all.
        time_embedding: what the network reads of the time; default t itself.
        gaps: whether the network reads the fraction observed at each level. It is fixed here: a
            complete series then reads as observed throughout.
        causal: whether it reads the past of t alone, for `LatentSDE.filter`.
        bridge: whether it reads the nearest observations on both sides too, see `Bridge`; default
            unless it is causal.
        per_channel: whether single channels may be missing; each is then read by itself.
        init_logstd: log std before training.
        device, dtype: of the parameters.

    `LadderPosterior.of` takes the sizes from data.

    Raises:
        TypeError, ValueError: for sizes below 1, or more levels than n has.

    Complexity: O(log(N) X + H^2) a time, after O(S N X) once for a data set. Source: chapter
    ``posterior/latent_sde``.

    >>> data = Observations(torch.randn(5, 1000, 2))
    >>> posterior = LadderPosterior(latent_size=3, hidden_size=16, channels=2, n=1000)
    >>> marginals = posterior(posterior.prepare(data), torch.tensor([0, 4]), torch.rand(2, 7))
    >>> marginals.mean.shape, marginals.std_dt.shape
    (torch.Size([2, 7, 3]), torch.Size([2, 7, 3]))
    """

    def __init__(
        self,
        latent_size: int,
        hidden_size: int,
        channels: int,
        n: int,
        *,
        duration: float = 1.0,
        levels: int | None = None,
        time_embedding: TimeEmbedding | None = None,
        gaps: bool = False,
        causal: bool = False,
        bridge: bool | None = None,
        per_channel: bool = False,
        init_logstd: float = -0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.latent_size = as_int(latent_size, "latent_size", least=1)
        self.hidden_size = as_int(hidden_size, "hidden_size", least=1)
        self.channels, self.n = as_int(channels, "channels", least=1), as_int(n, "n", least=1)
        self.duration = as_positive(duration, "duration")
        self.levels = levels_of(self.n, levels)
        self.gaps, self.causal = bool(gaps), bool(causal)
        self.time_embedding = time_embedding or TimeEmbedding(device=device)
        self.bridge = not causal if bridge is None else bool(bridge)
        self.per_channel = bool(per_channel)
        groups = self.channels if self.per_channel else 1
        self.in_features = features_of(self.channels, self.levels, self.gaps, self.bridge, groups)
        inputs = self.in_features + self.time_embedding.out_features
        sizes = inputs, self.hidden_size, self.latent_size
        self.net = affine_net(*sizes, init_logstd, device=device, dtype=dtype)
        # what is read is nearly an answer: the network mends it
        self.skip = nn.Linear(
            self.in_features, self.latent_size, bias=False, device=device, dtype=dtype
        )
        self._start()

    @classmethod
    def of(cls, data: Observations, latent_size: int, hidden_size: int, **settings: Any):
        """One that reads series like ``data``: its channels, rows and duration, and its gaps.

        Raises:
            TypeError: for data that are not `Observations`. ValueError: as for the class.

        >>> LadderPosterior.of(Observations(torch.randn(5, 41, 2), duration=3.0), 3, 16).duration
        3.0
        """
        observed = as_observations(data).observed
        known = {"channels": data.channels, "n": data.n, "duration": data.duration}
        known["gaps"] = observed is not None or data.t is not None
        known["per_channel"] = observed is not None and observed.dim() == 3
        return cls(latent_size, hidden_size, **(known | settings))

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again."""
        names = "latent_size hidden_size channels n duration levels time_embedding gaps causal"
        return {name: getattr(self, name) for name in f"{names} bridge per_channel".split()} | {
            "init_logstd": self.net.init_logstd
        }

    def reset_parameters(self) -> None:
        """All parameters as drawn anew."""
        self.net.reset_parameters()
        self._start()

    def _start(self) -> None:
        nn.init.normal_(self.skip.weight, std=0.1 / self.in_features**0.5)

    def extra_repr(self) -> str:
        """What it reads, and sizes."""
        return (
            f"n={self.n}, channels={self.channels}, levels={self.levels}, gaps={self.gaps}, "
            f"causal={self.causal}, bridge={self.bridge}, per_channel={self.per_channel}, "
            f"latent_size={self.latent_size}, hidden_size={self.hidden_size}"
        )

    def prepare(self, data: Observations) -> DataPyramid:
        """The data's pyramid: once for a data set.

        Raises:
            TypeError, ValueError: for data that this posterior does not read.
        """
        names = ("channels", "duration") if as_observations(data).t is not None else NAMES
        for name in names:
            if getattr(data, name) != getattr(self, name):
                raise ValueError(
                    f"this posterior reads series of {name} = {getattr(self, name)}, the data have "
                    f"{name} = {getattr(data, name)}"
                )
        return DataPyramid(
            data,
            self.levels,
            self.gaps,
            n=self.n,
            causal=self.causal,
            bridge=self.bridge,
            per_channel=self.per_channel,
        )

    def forward(self, prepared: DataPyramid, series: Any, t: Any) -> Marginals:
        """Mean and std, and their derivatives, at t (B, Q) of series (B,)."""
        if not isinstance(prepared, DataPyramid) or prepared.out_features != self.in_features:
            got = getattr(prepared, "out_features", type(prepared).__name__)
            raise TypeError(
                f"expected what prepare(data) of this posterior returned, {self.in_features} "
                f"features a time, got {got}"
            )
        series = prepared.data.series_index(series)
        t = as_times(t, series)
        dtype = next(self.net.parameters()).dtype
        with torch.no_grad():  # the data do not change
            value, slope = (part.to(dtype) for part in prepared.read(series, t))
            time, time_dt = self.time_embedding(t, dtype)
        inputs, inputs_dt = torch.cat([value, time], -1), torch.cat([slope, time_dt], -1)
        (mean, log_std), (mean_dt, log_std_dt) = (
            part.chunk(2, dim=-1) for part in push_forward(self.net, inputs, inputs_dt)
        )
        std = log_std.exp()
        return Marginals(mean + self.skip(value), std, mean_dt + self.skip(slope), std * log_std_dt)
