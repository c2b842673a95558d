"""A posterior without recurrence: it reads the observations themselves (chapter
``posterior/latent_sde``).
"""

from typing import Any

import torch

from fractal_lib.checks import as_int, as_positive
from fractal_lib.posterior.base import Posterior, TimeEmbedding, as_times
from fractal_lib.posterior.features import DataPyramid, levels_of
from fractal_lib.posterior.gaps import WIDTHS
from fractal_lib.posterior.heads import affine_net
from fractal_lib.posterior.marginals import CorrelatedMarginals, Marginals, push_forward
from fractal_lib.posterior.observations import Observations, as_observations
from fractal_lib.posterior.reader import Reader
from fractal_lib.posterior.splines import LEVELS, DataSplines

__all__ = ["LadderPosterior"]

NAMES = ("n", "channels", "duration")


class LadderPosterior(Posterior):
    """A posterior that costs the same however long the series: it reads the observations, and
    encodes nothing.

    What the data are like at every scale around t, `DataSplines.read`, goes through the network of
    `PosteriorAffine`. There is no recurrence and no header. (m, s) is continuous in t, and its
    derivative is exact.

    Args:
        latent_size: Z.
        hidden_size: H.
        channels: X.
        n: rows of a series; for times of their own, rows of the grid that they are pooled on.
        duration: T, of the series.
        levels: number of levels, of those that n has; default at most 6 of splines, all of means.
        time_embedding: what the network reads of the time; default t itself.
        gaps: whether the network reads how far observations are. It is fixed here: a complete
            series then reads as observed throughout.
        causal: whether it reads the past of t alone, for `LatentSDE.filter`.
        features: "splines", or "means", the pyramid of `DataPyramid`, which a causal one reads.
        per_channel: whether single channels may be missing; each is then read by itself.
        correlated: whether the coordinates of z_t are correlated and turn, `CorrelatedMarginals`;
            by default they are independent given t.
        init_logstd: log std before training.
        device, dtype: of the parameters.

    `LadderPosterior.of` takes the sizes from data.

    Raises:
        TypeError, ValueError: for sizes below 1, more levels than n has, other features, or splines
            that should be causal.

    Complexity: O(L X + H^2) a time, L at most log2(n) + 1, after O(S N X) once for a data set; if
    correlated, O(H Z^2) more, and O(Z^3) a time in a path.
    Source: chapter ``posterior/latent_sde``.

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
        features: str | None = None,
        per_channel: bool = False,
        correlated: bool = False,
        init_logstd: float = -0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.latent_size = as_int(latent_size, "latent_size", least=1)
        self.hidden_size = as_int(hidden_size, "hidden_size", least=1)
        self.channels, self.n = as_int(channels, "channels", least=1), as_int(n, "n", least=1)
        self.duration = as_positive(duration, "duration")
        self.gaps, self.causal = bool(gaps), bool(causal)
        self.features = features or ("means" if causal else "splines")
        if self.features not in ("splines", "means") or (causal and self.features != "means"):
            raise ValueError(
                'expected features "splines" or "means", and means if causal, got ' + repr(features)
            )
        splines = self.features == "splines"
        self.levels = levels_of(self.n, levels, LEVELS if splines else None)
        self.time_embedding = time_embedding or TimeEmbedding(device=device)
        self.per_channel, self.correlated = bool(per_channel), bool(correlated)
        groups = self.channels if self.per_channel else 1
        told = len(WIDTHS) if splines else self.levels  # numbers that tell gaps
        self.in_features = 2 * self.channels * self.levels + groups * self.gaps * told
        inputs = self.in_features + self.time_embedding.out_features
        sizes = inputs, self.hidden_size, self.latent_size
        factory: Any = {"device": device, "dtype": dtype}
        self.net = affine_net(*sizes, init_logstd, correlated=self.correlated, **factory)

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
        names = f"{names} features per_channel correlated".split()
        return {name: getattr(self, name) for name in names} | {"init_logstd": self.net.init_logstd}

    def reset_parameters(self) -> None:
        """All parameters as drawn anew."""
        self.net.reset_parameters()

    def extra_repr(self) -> str:
        """What it reads, and sizes."""
        return (
            f"n={self.n}, channels={self.channels}, levels={self.levels}, gaps={self.gaps}, "
            f"causal={self.causal}, features={self.features!r}, per_channel={self.per_channel}, "
            f"correlated={self.correlated}, latent_size={self.latent_size}, "
            f"hidden_size={self.hidden_size}"
        )

    def prepare(self, data: Observations) -> Reader:
        """What is read of the data: once for a data set.

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
        settings: dict[str, Any] = {"n": self.n, "per_channel": self.per_channel}
        if self.features == "splines":
            return DataSplines(data, self.levels, self.gaps, **settings)
        return DataPyramid(data, self.levels, self.gaps, causal=self.causal, **settings)

    def forward(self, prepared: Reader, series: Any, t: Any) -> Marginals | CorrelatedMarginals:
        """Mean and std, and their derivatives, at t (B, Q) of series (B,)."""
        if not isinstance(prepared, Reader) or prepared.out_features != self.in_features:
            got = getattr(prepared, "out_features", type(prepared).__name__)
            raise TypeError(
                f"expected what prepare(data) of this posterior returned, {self.in_features} "
                f"features a time, got {got}"
            )
        t = as_times(t, prepared.data.series_index(series))
        dtype = next(self.net.parameters()).dtype
        with torch.no_grad():  # the data do not change
            value, slope = (part.to(dtype) for part in prepared.read(series, t))
            time, time_dt = self.time_embedding(t, dtype)
        inputs, inputs_dt = torch.cat([value, time], -1), torch.cat([slope, time_dt], -1)
        marginals = CorrelatedMarginals if self.correlated else Marginals
        return marginals.of(*push_forward(self.net, inputs, inputs_dt))
