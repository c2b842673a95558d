"""The recurrent posterior: a GRU over the series, and a head that reads its states at t."""

from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.checks import as_int
from fractal_lib.posterior.base import Posterior, as_times
from fractal_lib.posterior.heads import PosteriorAffine
from fractal_lib.posterior.marginals import Marginals
from fractal_lib.posterior.observations import Observations, as_observations

__all__ = ["RecurrentPosterior"]


class RecurrentPosterior(Posterior):
    """A GRU over the whole series at every step, and a head that reads its states at t: the
    original.

    Args:
        head: a `PosteriorAffine` of any attention.
        channels: X.
        gaps: True if rows may be missing: a channel that says so is added.
        device, dtype: of the GRU's parameters; the head keeps its own.

    Raises:
        TypeError, ValueError: for a head that is not one, or channels below 1.

    Complexity: O(B N H^2) a step, sequential in N, whatever the head costs. Source: Bartosh, Vetrov
    and Naesseth (2025), their public notebook; chapter ``posterior/latent_sde``.

    >>> posterior = RecurrentPosterior(PosteriorAffine(latent_size=3, hidden_size=16), channels=2)
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> posterior(posterior.prepare(data), torch.tensor([0, 4]), torch.rand(2, 7)).mean.shape
    torch.Size([2, 7, 3])
    """

    def __init__(
        self,
        head: PosteriorAffine,
        channels: int,
        *,
        gaps: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not isinstance(head, PosteriorAffine):
            raise TypeError(f"expected head as a PosteriorAffine, got {type(head).__name__}")
        self.head, self.gaps, self.channels = head, bool(gaps), as_int(channels, "channels", 1)
        size = self.channels + self.gaps
        self.gru = nn.GRU(size, head.hidden_size, batch_first=True, device=device, dtype=dtype)

    @property
    def latent_size(self) -> int:
        """Z, of the head."""
        return self.head.latent_size

    def reset_parameters(self) -> None:
        """The parameters of head and GRU as drawn anew."""
        self.head.reset_parameters()
        self.gru.reset_parameters()

    def extra_repr(self) -> str:
        """What it reads."""
        return f"channels={self.channels}, gaps={self.gaps}"

    def prepare(self, data: Observations) -> Observations:
        """The data as they are: a recurrent encoder has nothing that outlives a step.

        Raises:
            TypeError, ValueError: for data that this encoder does not read.
        """
        as_observations(data)
        if not self.gaps and not data.complete:
            raise ValueError("the data have gaps: RecurrentPosterior(..., gaps=True)")
        if data.channels != self.channels:
            raise ValueError(f"expected {self.channels} channels, got {data.channels}")
        return data

    def encode(self, data: Observations, series: Any) -> Tensor:
        """The context (B, 1 + N, H) of some series: the last state as header, then every state."""
        series = self.prepare(data).series_index(series)
        x = data.values[series].to(self.gru.weight_ih_l0)
        if self.gaps:
            there = (
                torch.ones_like(x[..., :1])
                if data.observed is None
                else data.observed[series].unsqueeze(-1).to(x)
            )
            x = torch.cat([x, there], -1)
        states, last = self.gru(x)
        return torch.cat([last[0].unsqueeze(1), states], 1)

    def forward(self, prepared: Observations, series: Any, t: Any) -> Marginals:
        """Mean and std, and their derivatives, at t (B, Q) of series (B,): one encoding and one
        read.
        """
        context = self.encode(prepared, series)
        return self.head.get_marginals(context, as_times(t, context))
