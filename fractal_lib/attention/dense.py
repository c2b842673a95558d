"""Attention to every row: the specification the others are tested against."""

import torch
from torch import Tensor

from fractal_lib.attention.cells import Cells
from fractal_lib.attention.kernels import Kernel, OriginalKernel
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.reads import ContextAttention, Reads, combine, normalise, position


class DenseAttention(ContextAttention):
    """Every row, weighted by a kernel of its distance to t and normalised.

    Args:
        kernel: any `Kernel`; the default is the original softmax of -(l (ts - t))^2.

    Takes ``observed`` and ``times`` exactly. With several queries, a compiled loss that holds both a jvp in
    t and gradients of t is an error up to torch 2.13 (PyTorch issue 177261). Complexity: O(n H) per query.
    Positions are float64 whatever the rows are, where the original's float32 rounds at large n. Source:
    Bartosh, Vetrov and Naesseth (2025); chapter ``start/dense_attention``.

    >>> rows = torch.eye(3).unsqueeze(0)  # each row marks itself, so the result is the weights
    >>> DenseAttention()(rows, torch.tensor([[0.5]]))
    tensor([[[0.0870, 0.8259, 0.0870]]])
    """

    def __init__(self, kernel: Kernel | None = None):
        super().__init__()
        self.kernel = OriginalKernel() if kernel is None else kernel

    def prepare(self, rows: Tensor, observed: Tensor | None = None, times: Tensor | None = None) -> Pyramid:
        """The rows with their mask and their exact times."""
        return Pyramid(rows, observed, times, levels=1)

    def reads(self, t: Tensor, n: int | Cells) -> Reads:
        """All n rows for t (B, Q): index and weight (B, Q, n)."""
        cells = n if isinstance(n, Cells) else Cells(n, 1)
        x = position(t, cells.n).unsqueeze(-1)  # (B, Q, 1)
        every = torch.arange(cells.n, device=t.device).expand(*t.shape, -1)
        index, count = cells.look(0, every)
        return Reads(index, normalise(self.kernel.log(x - cells.centre(0, every), cells.n), count))

    @staticmethod
    def read(rows: Tensor, reads: Reads) -> Tensor:
        """`read` where every row is read: a matrix product instead of a gather of (B, Q, n, H)."""
        return combine(reads.weight, rows)
