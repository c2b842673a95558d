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
        gaps: True if something may be missing: a channel is added that says what fraction of each
            row is there.
        bidirectional: False, as in the public notebook, for states that know the past alone; the
            header knows all. True for a second GRU from the end to the start: each has half the
            head's width, so that the context is as wide.
        device, dtype: of the GRU's parameters; the head keeps its own.

    Raises:
        TypeError, ValueError: for a head that is not one, channels below 1, or two directions with
            a head whose hidden_size is odd.

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
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not isinstance(head, PosteriorAffine):
            raise TypeError(f"expected head as a PosteriorAffine, got {type(head).__name__}")
        self.head, self.gaps, self.channels = head, bool(gaps), as_int(channels, "channels", 1)
        self.bidirectional = bool(bidirectional)
        if self.bidirectional and head.hidden_size % 2:
            raise ValueError(
                f"expected an even hidden_size of the head, half for each direction, got "
                f"{head.hidden_size}"
            )
        self.gru = nn.GRU(
            self.channels + self.gaps,
            head.hidden_size // (1 + self.bidirectional),
            batch_first=True,
            bidirectional=self.bidirectional,
            device=device,
            dtype=dtype,
        )

    @property
    def latent_size(self) -> int:
        """Z, of the head."""
        return self.head.latent_size

    def reset_parameters(self) -> None:
        """The parameters of head and GRU as drawn anew."""
        self.head.reset_parameters()
        self.gru.reset_parameters()

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again: what `save_model` keeps."""
        names = ("head", "channels", "gaps", "bidirectional")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """What it reads."""
        words = f"channels={self.channels}, gaps={self.gaps}"
        return words + ", bidirectional=True" * self.bidirectional

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
        if getattr(data, "t", None) is not None:  # times of their own
            raise ValueError(
                "expected rows on an even grid, where the head looks for them, got times of their "
                "own: bin them first"
            )
        return data

    def encode(self, data: Observations, series: Any) -> Tensor:
        """The context (B, 1 + N, H) of some series: the last state as header, then every state.

        Of two directions, the forward state comes first in a row, and the header is the last state
        of each: that at the end, and the other's at the start.
        """
        series = self.prepare(data).series_index(series)
        x = data.values[series].to(self.gru.weight_ih_l0)
        if self.gaps:
            there = torch.ones_like(x[..., :1])
            if data.observed is not None:  # (B, N, 1), or a mask of each channel
                mask = data.observed[series].to(x).reshape(*x.shape[:2], -1)
                there = mask.mean(-1, keepdim=True)
            x = torch.cat([x, there], -1)
        states, last = self.gru(x)
        header = torch.cat(list(last), -1)  # last: (directions, B, H / directions)
        return torch.cat([header.unsqueeze(1), states], 1)

    def forward(self, prepared: Observations, series: Any, t: Any) -> Marginals:
        """Mean and std, and their derivatives, at t (B, Q) of series (B,): one encoding and one
        read.
        """
        context = self.encode(prepared, series)
        return self.head.get_marginals(context, as_times(t, context))
