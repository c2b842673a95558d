"""Heads: a context and a time to the mean and std of a latent (chapter
``gallery/combined_head``).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.attention.base import ContextAttention, Reads
from fractal_lib.attention.dense import DenseAttention
from fractal_lib.attention.dragon import DragonCurveAttention
from fractal_lib.attention.fractal import FractalAttention
from fractal_lib.attention.hilbert import HilbertCurveAttention
from fractal_lib.attention.mixture import MixtureAttention
from fractal_lib.checks import as_float, as_int
from fractal_lib.posterior.marginals import Marginals, push_forward

__all__ = ["PosteriorAffine", "UltimateFractalPosteriorAffine"]

Coefficients = tuple[Tensor, Tensor]

LEADING = (4.0, 0.0, 0.0)
"""Logits of the combined head's patterns at the start: 96 % the ladder."""

NARROW = [math.log(0.717), math.log(0.283)]
"""Logits of the ladder's first levels that come nearest to `OriginalKernel`: what
`FractalAttention.fit` finds for many rows. It needs scipy, so they stand here.
"""

FAR = -7.0
"""Those of the other levels at the start, of which `fit` makes no use at all: few enough to change
nothing, enough for training to find them.
"""


class PosteriorAffine(nn.Module):
    """The head of SDE Matching's posterior, z_t = m(t) + s(t) eps, over any attention.

    Args:
        latent_size: Z, size of the latent.
        hidden_size: H, size of a row of the context.
        attention: any `ContextAttention`; by default `DenseAttention`, which makes this the
            original head, to rounding, and loads its ``state_dict`` (``net.0.weight`` and so on).
        init_logstd: log s before training, for every context and t; the last layer's weights for
            log s start at 0.
        device, dtype: of the network's parameters; the attention keeps its own.

    The context ctx is (B, 1 + n, H): a header, which is added to what is read, and n rows in order
    of time. A query is t (B, 1) in [0, 1].

    Raises:
        ValueError, TypeError: for sizes below 1, or an attention, a context or a t that do not fit.

    Complexity: that of the attention, and O(H^2) for the network. Source: Bartosh, Vetrov and
    Naesseth (2025), their public notebook, and chapter ``gallery/combined_head``.

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
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.latent_size = as_int(latent_size, "latent_size", least=1)
        self.hidden_size = as_int(hidden_size, "hidden_size", least=1)
        attention = DenseAttention() if attention is None else attention
        if not isinstance(attention, ContextAttention):
            raise TypeError(f"attention must be a ContextAttention, got {type(attention).__name__}")
        self.attention = attention
        sizes = self.hidden_size + 1, self.hidden_size, self.latent_size
        self.net = affine_net(*sizes, init_logstd, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """The network's parameters as drawn anew; the attention keeps its own."""
        self.net.reset_parameters()

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again: what `save_model` keeps."""
        return {
            "latent_size": self.latent_size,
            "hidden_size": self.hidden_size,
            "attention": self.attention,
            "init_logstd": self.net.init_logstd,
        }

    def extra_repr(self) -> str:
        """Sizes."""
        return f"latent_size={self.latent_size}, hidden_size={self.hidden_size}"

    def get_coeffs(self, ctx: Any, t: Any) -> Coefficients:
        """Mean m and std s, (B, Z) each, for ctx (B, 1 + n, H) and t (B, 1)."""
        ctx, t = self._one_time(ctx, t)
        u = self._read(ctx, t)
        m, log_s = (
            self.net(torch.cat([u, t.to(u.dtype).unsqueeze(-1)], -1)).squeeze(1).chunk(2, dim=-1)
        )
        return m, log_s.exp()

    def forward(
        self, ctx: Any, t: Any, return_t_dir: bool = False
    ) -> Coefficients | tuple[Coefficients, Coefficients]:
        """(m, s); with ``return_t_dir`` also their derivatives in t: ((m, s), (dm, ds)).

        The derivatives are differentiable themselves: they enter the loss squared.
        """
        if not return_t_dir:
            return self.get_coeffs(ctx, t)
        ctx, t = self._one_time(ctx, t)
        m, s, dm, ds = (part.squeeze(1) for part in self.get_marginals(ctx, t))
        return (m, s), (dm, ds)

    def get_marginals(self, ctx: Any, t: Any) -> Marginals:
        """Mean, std and their derivatives at many times of each context, t (B, Q), by one read."""
        ctx, t = self._inputs(ctx, t)
        u, du, *_ = torch.func.jvp(lambda s: self._read(ctx, s), (t,), (torch.ones_like(t),))
        time = t.to(u.dtype).unsqueeze(-1)
        # (B, Q, H + 1)
        x, dx = torch.cat([u, time], -1), torch.cat([du, torch.ones_like(time)], -1)
        return Marginals.of(*push_forward(self.net, x, dx))

    def _one_time(self, ctx: Any, t: Any) -> tuple[Tensor, Tensor]:
        ctx, t = self._inputs(ctx, t)
        if t.shape[1] != 1:
            raise ValueError(
                f"expected t of shape {(len(ctx), 1)}, one time per context, got {tuple(t.shape)}"
            )
        return ctx, t

    def _inputs(self, ctx: Any, t: Any) -> tuple[Tensor, Tensor]:
        """Context and times as tensors that fit; a context in wider numbers than the network's is
        rounded to them.
        """
        ctx, dtype = as_float(ctx, "ctx"), self.net[0].weight.dtype
        if ctx.dtype.itemsize > dtype.itemsize:
            ctx = ctx.to(dtype)
        t = as_float(t, "t").to(ctx.device)
        if ctx.dim() != 3 or ctx.shape[1] < 2 or ctx.shape[2] != self.hidden_size:
            raise ValueError(
                f"expected ctx (B, 1 + n, {self.hidden_size}) with n >= 1, got {tuple(ctx.shape)}"
            )
        if t.dim() != 2 or t.shape[0] != ctx.shape[0]:
            one = (ctx.shape[0], 1)
            raise ValueError(
                f"expected t (B, Q) with B = {one[0]}, or {one}, one time per context, got "
                f"{tuple(t.shape)}"
            )
        return ctx, t

    def _read(self, ctx: Tensor, t: Tensor) -> Tensor:
        """Header and what is read at t, added up: (B, Q, H)."""
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
        narrow: start as the dense head reads: the ladder's shares are those that
            `FractalAttention.fit` finds for `OriginalKernel`, and the ladder has 96 % of the
            mixture. False for equal shares of the three, and of the levels: a broad start, from
            which training takes long to come back.
        device, dtype: of all parameters.

    Attributes:
        fractal_weights: (3,) parameter, logits of the weights of ladder, Hilbert curve and dragon.

    Takes the place of the dense head as it is: same arguments, same calls. Complexity: at most 8
    log2(n) + 33 reads a query, where the dense head has n. Source: the original sketch's class of
    this name; chapter ``gallery/combined_head``.

    >>> head = UltimateFractalPosteriorAffine(latent_size=3, hidden_size=16)
    >>> (m, s), (dm, ds) = head(torch.randn(8, 1 + 1000, 16), torch.rand(8, 1), return_t_dir=True)
    >>> dm.shape
    torch.Size([8, 3])
    """

    def __init__(
        self,
        latent_size: int,
        hidden_size: int,
        init_logstd: float = -0.5,
        *,
        narrow: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        parts = FractalAttention(), HilbertCurveAttention(), DragonCurveAttention()
        attention = MixtureAttention(*parts, logits=LEADING if narrow else None)
        attention = attention.to(device=device, dtype=dtype)
        sizes = latent_size, hidden_size
        super().__init__(*sizes, attention, init_logstd, device=device, dtype=dtype)
        self.narrow = bool(narrow)
        self._start_levels()

    def reset_parameters(self) -> None:
        """All parameters as drawn anew, those of the patterns too."""
        super().reset_parameters()
        assert isinstance(self.attention, MixtureAttention)
        self.attention.reset_parameters()
        for part in self.attention.attentions:
            part.reset_parameters()  # type: ignore[operator]  # each of the three has it
        self._start_levels()

    @torch.no_grad()
    def _start_levels(self) -> None:
        """The ladder's shares: those of the dense head's kernel, if it starts narrow."""
        if self.narrow:
            assert isinstance(self.attention, MixtureAttention)
            logits = self.attention.attentions[0].level_logits
            assert isinstance(logits, nn.Parameter)
            logits.copy_(torch.tensor(NARROW + [FAR] * (len(logits) - len(NARROW))))

    def settings(self) -> dict[str, Any]:
        """The arguments that make it again: what `save_model` keeps."""
        kept = super().settings() | {"narrow": self.narrow}
        return {name: value for name, value in kept.items() if name != "attention"}

    @property
    def fractal_weights(self) -> nn.Parameter:
        """Logits of the weights of the three patterns."""
        assert isinstance(self.attention, MixtureAttention)
        return self.attention.logits


class AffineNet(nn.Sequential):
    """The network of `PosteriorAffine`: inputs to (m, log s), log s a constant before training, and
    to what a correlated scale has beside them, 0 before training.
    """

    def __init__(self, *layers: nn.Module, latent_size: int, init_logstd: float):
        super().__init__(*layers)
        self.latent_size, self.init_logstd = latent_size, float(init_logstd)
        self._start()

    def reset_parameters(self) -> None:
        """All parameters as drawn anew."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        last = self[-1]
        assert isinstance(last, nn.Linear)
        last.weight[self.latent_size :] = 0
        last.bias[self.latent_size :] = 0
        last.bias[self.latent_size : 2 * self.latent_size] = self.init_logstd


def affine_net(
    inputs: int,
    hidden_size: int,
    latent_size: int,
    init_logstd: float,
    *,
    correlated: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> AffineNet:
    """An `AffineNet` of two hidden layers, for `Marginals` or for `CorrelatedMarginals`."""
    factory = {"device": device, "dtype": dtype}
    outputs = latent_size * (latent_size + 1 if correlated else 2)
    return AffineNet(
        nn.Linear(inputs, hidden_size, **factory),
        nn.SiLU(),
        nn.Linear(hidden_size, hidden_size, **factory),
        nn.SiLU(),
        nn.Linear(hidden_size, outputs, **factory),
        latent_size=latent_size,
        init_logstd=init_logstd,
    )
