"""The ladder: a few rows on every scale around t, log2(n) scales (chapter ``attention/fractal``)."""

import numpy as np
import torch
from torch import Tensor, nn

from fractal_lib.attention.cells import Cells, all_levels, strides
from fractal_lib.attention.kernels import Kernel
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.reads import ContextAttention, Reads, average, position
from fractal_lib.attention.telescope import telescope_bound, telescope_reads
from fractal_lib.curves.cantor import bspline_weights, ladder

MAX_LEVELS = 32  # as many scales as 2**32 rows have


class FractalAttention(ContextAttention):
    """Read a context at O(log n) places: dense near t, sparse far away, alike on every scale.

    *Learned scales* (``kernel=None``): four rows a level under a cubic B-spline, each level with a
    learnable share, so the kernel is sum_k a_k 2^-k beta(d / 2^k), a = softmax(scales). It is C^2 in t.

    *A given kernel* (``kernel=...``): near rows one by one and far rows by ever larger cells, to an
    error that ``cells`` sets and `error_bound` tells.

    Args:
        depth: number of scales; default all that n has. Only for learned scales.
        source: ``"sample"`` reads rows of the grid of stride 2^k and needs no preparation;
            ``"pyramid"`` reads means over 2^k rows, prepared once in O(n). Default ``"sample"`` for
            learned scales; a given kernel always reads the pyramid.
        kernel: a `Kernel`, or None.
        cells: w, the number of cells on each side of t before they double in width; even, >= 4. Only with a kernel.
        order: 0 reads cell means (error ~ 1/w), 1 also first moments (error ~ 1/w^2). Only with a kernel.

    Attributes:
        scales: (depth or 32,) float32 parameter, logits of the levels' shares; None with a kernel.

    Takes ``observed``; takes ``times`` when it reads the pyramid. Complexity: 4 log2(n) reads per
    query with learned scales, about (3/2 w) log2(n / w) with a kernel, of H numbers each.

    Raises:
        ValueError: for arguments that contradict each other.

    >>> attention = FractalAttention()
    >>> attention(torch.randn(8, 1000, 2), torch.rand(8, 3)).shape
    torch.Size([8, 3, 2])
    >>> attention.reads(torch.tensor([[0.3]]), 1000).index.shape
    torch.Size([1, 1, 40])
    """

    def __init__(
        self,
        depth: int | None = None,
        source: str | None = None,
        kernel: Kernel | None = None,
        cells: int = 16,
        order: int = 0,
    ):
        super().__init__()
        if kernel is not None and (source == "sample" or depth is not None):
            raise ValueError("a given kernel reads the whole pyramid: leave source and depth out")
        if source not in (None, "sample", "pyramid"):
            raise ValueError(f'source must be "sample" or "pyramid", got {source!r}')
        if depth is not None and not 1 <= depth <= MAX_LEVELS:
            raise ValueError(f"depth must lie in [1, {MAX_LEVELS}], got {depth}")
        if cells < 4 or cells % 2 or order not in (0, 1) or (order and kernel is None):
            raise ValueError(f"expected even cells >= 4, and order 0, or 1 with a kernel; got {cells=}, {order=}")
        self.source = source or ("sample" if kernel is None else "pyramid")
        self.kernel, self.cells, self.order = kernel, cells, order
        self.scales = nn.Parameter(torch.zeros(depth or MAX_LEVELS)) if kernel is None else None

    def levels(self, n: int) -> int:
        """Number of scales read in a context of n rows."""
        # a sampled grid needs a stride below n; the pyramid's last cell holds everything
        has = all_levels(n) if self.source == "pyramid" else max(all_levels(n) - 1, 1)
        return has if self.scales is None else min(has, self.scales.shape[0])

    def prepare(self, rows: Tensor, observed: Tensor | None = None, times: Tensor | None = None) -> Pyramid:
        """The `Pyramid`, or for ``source="sample"`` the rows as they are."""
        if self.source == "sample":
            return super().prepare(rows, observed, times)
        return Pyramid(rows, observed, times, order=self.order)

    def reads(self, t: Tensor, n: int | Cells) -> Reads:
        """Where to read for t (B, Q): index and weight (B, Q, K)."""
        cells = n if isinstance(n, Cells) else Cells(n, 1 if self.source == "sample" else all_levels(n))
        x = position(t, cells.n)
        if self.kernel is not None:
            return telescope_reads(x, cells, self.kernel, self.cells, self.order)
        levels = self.levels(cells.n)
        stride = strides(levels, t.device)  # (L,)
        if self.source == "sample":
            rung, fraction = ladder(x.unsqueeze(-1), stride)  # (B, Q, L, 4), (B, Q, L)
            index, count = cells.look(0, (rung * stride.unsqueeze(-1)).flatten(-2))
        else:  # cell j of level k is centred at (j + 1/2) 2^k - 1/2
            rung, fraction = ladder(x.unsqueeze(-1) + (1 - stride) / 2.0, stride)
            level = torch.arange(levels, device=t.device).unsqueeze(-1).expand(-1, 4).flatten()
            index, count = cells.look(level, rung.flatten(-2))
            count = count / stride[level]
        share = self.scales[:levels].double().softmax(0).unsqueeze(-1)  # (L, 1)
        weight = (share * bspline_weights(fraction)).flatten(-2) * count
        return Reads(index, average(weight))

    def fit(self, kernel: Kernel, n: int) -> float:
        """Set the learned scales to the kernel's, by non-negative least squares.

        Args:
            kernel: the kernel to approach.
            n: number of rows it is meant for.

        Returns:
            largest error of sum_k a_k 2^-k beta(d / 2^k) against k(d), as a share of k(0), over all
            distances 0 <= d <= n - 1. One scale an octave reaches 1 to 5 %, not more: for a stated
            error use ``FractalAttention(kernel=...)``.

        Raises:
            ValueError: if this attention has no learned scales.

        Source: Lawson and Hanson (1974) for the least squares; chapter ``attention/fractal``.

        >>> from fractal_lib import PowerLaw
        >>> FractalAttention().fit(PowerLaw(2.0), n=10_000) < 0.05
        True
        """
        from scipy.optimize import nnls  # only here: the rest of the library needs torch and numpy alone

        if self.scales is None:
            raise ValueError("a given kernel has no scales to fit")
        levels = self.levels(n)
        near = np.arange(0, min(n - 1, 64) + 0.25, 0.25)
        d = np.concatenate([near, np.geomspace(1, max(n - 1, 1), 64 * levels)])[:, None]
        u = d / 2.0 ** np.arange(levels)
        beta = np.maximum(2 - u, 0) ** 3 / 6 - np.maximum(1 - u, 0) ** 3 * 2 / 3
        basis = beta / 2.0 ** np.arange(levels)
        target = kernel(torch.from_numpy(d[:, 0]), n).numpy()
        share, _ = nnls(basis, target)
        with torch.no_grad():
            logits = torch.from_numpy(np.log(np.maximum(share / share.sum(), 1e-9)))
            self.scales[:levels] = logits.to(self.scales)
        return float(np.abs(basis @ share - target).max() / target.max())

    def error_bound(self, n: int, gaps: bool = False) -> float:
        """Largest error of a given kernel's result, per unit of the rows' largest magnitude.

        Args:
            n: number of evenly spaced rows.
            gaps: True if any rows may be missing (a much looser bound).

        Returns:
            the bound, or inf if the cells are too few for this kernel at this n. It is exact
            arithmetic's: rounding comes on top.

        Raises:
            ValueError: if this attention has no given kernel.

        Complexity: O(n log n). Source: chapter ``attention/fractal``.

        >>> from fractal_lib import PowerLaw
        >>> FractalAttention(kernel=PowerLaw(1.0), cells=16).error_bound(16)  # all rows are near
        0.0
        """
        if self.kernel is None:
            raise ValueError("error_bound is for a given kernel; fit() tells the error of learned scales")
        return telescope_bound(n, self.kernel, self.cells, self.order, gaps)
