"""Attention to every row: the specification the others are tested against."""

import torch
from torch import Tensor

from fractal_lib.attention.cells import Cells
from fractal_lib.attention.checks import require
from fractal_lib.attention.kernels import Kernel, OriginalKernel
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.reads import ContextAttention, Reads, combine, normalise, position


class DenseAttention(ContextAttention):
    """Every row, weighted by a kernel of its distance to t and normalised.

    Args:
        kernel: any `Kernel`; the default is the original softmax of -(l (ts - t))^2.
        prior: None, or (n,) floating point, finite, not negative and not all 0: how much each row counts before its
            distance does. Weights are kernel * prior. It belongs to the rows and not to the query, so the result is
            as smooth in t as the kernel. Kept as a buffer, in the dtype it has.

    Takes ``observed`` and ``times`` exactly. With several queries, a compiled loss that holds both a jvp in
    t and gradients of t is an error up to torch 2.13 (PyTorch issue 177261). Complexity: O(n H) per query.
    Positions are float64 whatever the rows are, where the original's float32 rounds at large n. Source:
    Bartosh, Vetrov and Naesseth (2025); chapter ``start/dense_attention``; the prior, chapter ``attention/julia``.

    Raises:
        TypeError, ValueError: for a prior that is not as said, or (when called) not one number a row.

    >>> rows = torch.eye(3).unsqueeze(0)  # each row marks itself, so the result is the weights
    >>> DenseAttention()(rows, torch.tensor([[0.5]]))
    tensor([[[0.0870, 0.8259, 0.0870]]])
    >>> DenseAttention(prior=torch.tensor([1.0, 0.0, 3.0]))(rows, torch.tensor([[0.5]]))
    tensor([[[0.2500, 0.0000, 0.7500]]])
    """

    def __init__(self, kernel: Kernel | None = None, prior: Tensor | None = None):
        super().__init__()
        self.kernel = OriginalKernel() if kernel is None else kernel
        if prior is not None:
            _check_prior(prior)
        self.register_buffer("prior", prior, persistent=False)

    def prepare(self, rows: Tensor, observed: Tensor | None = None, times: Tensor | None = None) -> Pyramid:
        """The rows with their mask and their exact times."""
        return Pyramid(rows, observed, times, levels=1)

    def reads(self, t: Tensor, n: int | Cells) -> Reads:
        """All n rows for t (B, Q): index and weight (B, Q, n)."""
        cells = n if isinstance(n, Cells) else Cells(n, 1)
        x = position(t, cells.n).unsqueeze(-1)  # (B, Q, 1)
        every = torch.arange(cells.n, device=t.device).expand(*t.shape, -1)
        index, count = cells.look(0, every)
        if self.prior is not None:
            if self.prior.shape[0] != cells.n:
                raise ValueError(f"the prior is for {self.prior.shape[0]} rows, got {cells.n}")
            count = count * self.prior
        return Reads(index, normalise(self.kernel.log(x - cells.centre(0, every), cells.n), count))

    @staticmethod
    def read(rows: Tensor, reads: Reads) -> Tensor:
        """`read` where every row is read: a matrix product instead of a gather of (B, Q, n, H)."""
        return combine(reads.weight, rows)


def _check_prior(prior: Tensor) -> None:
    if not isinstance(prior, Tensor) or not prior.is_floating_point():
        got = prior.dtype if isinstance(prior, Tensor) else type(prior)
        raise TypeError(f"prior must be a floating point tensor, got {got}")
    if prior.dim() != 1 or len(prior) == 0:
        raise ValueError(f"prior must have shape (n,), n >= 1, got {tuple(prior.shape)}")
    require(
        lambda: (prior.isfinite() & (prior >= 0)).all() & (prior > 0).any(),
        "prior must be finite, not negative and not all 0, got values from {0[0]} to {0[1]}",
        lambda: (prior.min().item(), prior.max().item()),
    )
