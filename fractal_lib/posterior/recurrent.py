"""The recurrent posterior: a GRU over the series, and a head that reads its states at t."""

import torch
from torch import Tensor, nn

from fractal_lib.posterior.base import Posterior
from fractal_lib.posterior.heads import PosteriorAffine
from fractal_lib.posterior.marginals import Marginals
from fractal_lib.posterior.observations import Observations

__all__ = ["RecurrentPosterior"]


class RecurrentPosterior(Posterior):
    """A GRU over the whole series at every step, and a head that reads its states at t: the
    original.

    Args:
        head: a `PosteriorAffine` of any attention.
        channels: X.
        gaps: True if rows may be missing: a channel that says so is added.

    Complexity: O(B N H^2) a step, sequential in N, whatever the head costs. Source: Bartosh, Vetrov
    and Naesseth (2025), their public notebook; chapter ``posterior/latent_sde``.

    >>> posterior = RecurrentPosterior(PosteriorAffine(latent_size=3, hidden_size=16), channels=2)
    >>> data = Observations(torch.randn(5, 41, 2))
    >>> posterior(posterior.prepare(data), torch.tensor([0, 4]), torch.rand(2, 7)).mean.shape
    torch.Size([2, 7, 3])
    """

    def __init__(self, head: PosteriorAffine, channels: int, *, gaps: bool = False):
        super().__init__()
        self.head, self.gaps = head, gaps
        self.gru = nn.GRU(channels + gaps, head.hidden_size, batch_first=True)

    def prepare(self, data: Observations) -> Observations:
        """The data as they are: a recurrent encoder has nothing that outlives a step."""
        if not self.gaps and data.observed is not None and not bool(data.observed.all()):
            raise ValueError("the data have gaps: RecurrentPosterior(..., gaps=True)")
        if data.channels + self.gaps != self.gru.input_size:
            raise ValueError(
                f"expected {self.gru.input_size - self.gaps} channels, got {data.channels}"
            )
        return data

    def encode(self, data: Observations, series: Tensor) -> Tensor:
        """The context (B, 1 + N, H) of some series: the last state as header, then every state."""
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

    def forward(self, prepared: Observations, series: Tensor, t: Tensor) -> Marginals:
        """Mean and std, and their derivatives, at t (B, Q) of series (B,): one encoding and one
        read.
        """
        return self.head.get_marginals(self.encode(prepared, series), t)
