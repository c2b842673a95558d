"""Heads: a context and a time to the mean and spread of a latent (chapter
``posterior/combined_head``).
"""

import torch
from torch import Tensor, nn

from fractal_lib.attention.base import ContextAttention, Reads
from fractal_lib.attention.dense import DenseAttention
from fractal_lib.attention.dragon import DragonCurveAttention
from fractal_lib.attention.fractal import FractalAttention
from fractal_lib.attention.hilbert import HilbertCurveAttention
from fractal_lib.attention.mixture import MixtureAttention
from fractal_lib.posterior.marginals import Marginals, push_forward

__all__ = ["PosteriorAffine", "UltimateFractalPosteriorAffine"]

Coefficients = tuple[Tensor, Tensor]


class PosteriorAffine(nn.Module):
    """The head of SDE Matching's posterior, z_t = m(t) + s(t) eps, over any attention.

    Args:
        latent_size: Z, size of the latent.
        hidden_size: H, size of a row of the context.
        attention: any `ContextAttention`; by default `DenseAttention`, which makes this the
            original head, to rounding, and loads its ``state_dict`` (``net.0.weight`` and so on).
        init_logstd: log s before training, for every context and t; the last layer's weights for
            log s start at 0.

    The context ctx is (B, 1 + n, H): a header, which is added to what is read, and n rows in order
    of time. A query is t (B, 1) in [0, 1].

    Raises:
        ValueError, TypeError: for sizes below 1, or an attention, a context or a t that do not fit.

    Complexity: that of the attention, and O(H^2) for the network. Source: Bartosh, Vetrov and
    Naesseth (2025), their public notebook, and chapter ``posterior/combined_head``.

    >>> head = PosteriorAffine(latent_size=3, hidden_size=16, attention=FractalAttention())
    >>> m, s = head(torch.randn(8, 1 + 100, 16), torch.rand(8, 1))
    >>> m.shape, s.shape
    (torch.Size([8, 3]), torch.Size([8, 3]))
    """

    def __init__(
        self,
        latent_size: int,
        hidden_size: int,
        attention: ContextAttention | None = None,
        init_logstd: float = -0.5,
    ):
        super().__init__()
        if latent_size < 1 or hidden_size < 1:
            raise ValueError(f"sizes must be at least 1, got {latent_size=}, {hidden_size=}")
        attention = DenseAttention() if attention is None else attention
        if not isinstance(attention, ContextAttention):
            raise TypeError(f"attention must be a ContextAttention, got {type(attention).__name__}")
        self.latent_size, self.hidden_size = latent_size, hidden_size
        self.attention = attention
        self.net = affine_net(hidden_size + 1, hidden_size, latent_size, init_logstd)

    def get_coeffs(self, ctx: Tensor, t: Tensor) -> Coefficients:
        """Mean m and spread s, (B, Z) each, for ctx (B, 1 + n, H) and t (B, 1)."""
        _check_one_time(ctx, t)
        u = self._read(ctx, t)
        m, log_s = (
            self.net(torch.cat([u, t.to(u.dtype).unsqueeze(-1)], -1)).squeeze(1).chunk(2, dim=-1)
        )
        return m, log_s.exp()

    def forward(
        self, ctx: Tensor, t: Tensor, return_t_dir: bool = False
    ) -> Coefficients | tuple[Coefficients, Coefficients]:
        """(m, s); with ``return_t_dir`` also their derivatives in t: ((m, s), (dm, ds)).

        The derivatives are differentiable themselves: they enter the loss squared.
        """
        if not return_t_dir:
            return self.get_coeffs(ctx, t)
        _check_one_time(ctx, t)
        m, s, dm, ds = (part.squeeze(1) for part in self.get_marginals(ctx, t))
        return (m, s), (dm, ds)

    def get_marginals(self, ctx: Tensor, t: Tensor) -> Marginals:
        """Means, spreads and their derivatives at many times of each context, t (B, Q), by one
        read.
        """
        u, du = torch.func.jvp(lambda s: self._read(ctx, s), (t,), (torch.ones_like(t),))
        time = t.to(u.dtype).unsqueeze(-1)
        # (B, Q, H + 1)
        x, dx = torch.cat([u, time], -1), torch.cat([du, torch.ones_like(time)], -1)
        return Marginals.of(*push_forward(self.net, x, dx))

    def _read(self, ctx: Tensor, t: Tensor) -> Tensor:
        """Header and what is read at t, added up: (B, Q, H)."""
        if ctx.dim() != 3 or ctx.shape[1] < 2 or ctx.shape[2] != self.hidden_size:
            raise ValueError(
                f"expected ctx (B, 1 + n, {self.hidden_size}) with n >= 1, got {tuple(ctx.shape)}"
            )
        if t.dim() != 2 or t.shape[0] != ctx.shape[0]:
            raise ValueError(f"expected t (B, Q) with B = {ctx.shape[0]}, got {tuple(t.shape)}")
        context = self.attention.prepare(ctx[:, 1:])
        reads = self.attention.reads(t, context.tree)
        if context.tree.levels > 1:  # pooled rows are a tensor of their own
            return ctx[:, :1] + self.attention.read(context.values, reads)
        # The header is one more read, row 0 with weight 1: two slices would cost two more gradients
        # of the size of ctx.
        index, weight = (
            nn.functional.pad(reads.indices + 1, (1, 0)),
            nn.functional.pad(reads.weights, (1, 0), value=1.0),
        )
        return self.attention.read(ctx, Reads(index, weight))


class UltimateFractalPosteriorAffine(PosteriorAffine):
    """The combined head of the original sketch: the ladder, the Hilbert curve and the dragon, all
    three in use.

    Their reads are put side by side and gathered once. (m, s) is C^2 in t.

    Args:
        latent_size: Z, size of the latent.
        hidden_size: H, size of a row of the context.
        init_logstd: log s before training.

    Attributes:
        fractal_weights: (3,) parameter, logits of the shares of ladder, Hilbert curve and dragon.

    Takes the place of the dense head as it is: same arguments, same calls. Complexity: at most 8
    log2(n) + 33 reads a query, where the dense head has n. Source: the original sketch's class of
    this name; chapter ``posterior/combined_head``.

    >>> head = UltimateFractalPosteriorAffine(latent_size=3, hidden_size=16)
    >>> (m, s), (dm, ds) = head(torch.randn(8, 1 + 1000, 16), torch.rand(8, 1), return_t_dir=True)
    >>> dm.shape
    torch.Size([8, 3])
    """

    def __init__(self, latent_size: int, hidden_size: int, init_logstd: float = -0.5):
        attention = MixtureAttention(
            FractalAttention(), HilbertCurveAttention(), DragonCurveAttention()
        )
        super().__init__(latent_size, hidden_size, attention, init_logstd)

    @property
    def fractal_weights(self) -> nn.Parameter:
        """Logits of the shares of the three patterns."""
        return self.attention.logits


def _check_one_time(ctx: Tensor, t: Tensor) -> None:
    if t.shape != (ctx.shape[0], 1):
        raise ValueError(
            f"expected t of shape {(ctx.shape[0], 1)}, one time per context, got {tuple(t.shape)}"
        )


def affine_net(
    inputs: int, hidden_size: int, latent_size: int, init_logstd: float
) -> nn.Sequential:
    """The network of `PosteriorAffine`: inputs to (m, log s), log s a constant before training."""
    net = nn.Sequential(
        nn.Linear(inputs, hidden_size),
        nn.SiLU(),
        nn.Linear(hidden_size, hidden_size),
        nn.SiLU(),
        nn.Linear(hidden_size, 2 * latent_size),
    )
    with torch.no_grad():
        net[-1].weight[latent_size:] = 0
        net[-1].bias[latent_size:] = init_logstd
    return net
