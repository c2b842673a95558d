"""The ladder: a few rows on every scale around t, log2(n) scales.

Chapter ``start/ladder``.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fractal_lib.attention.base import ContextAttention, Reads, average, pattern, position
from fractal_lib.attention.kernels import Kernel
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree, all_levels, node_stencil, strides
from fractal_lib.checks import as_int, optional
from fractal_lib.curves.splines import bspline, bspline_weights, stencil

__all__ = ["MAX_LEVELS", "FractalAttention"]

MAX_LEVELS = 32  # as many scales as 2**32 rows have


@pattern(
    "ladder",
    three_levels={"depth": 3},
    pyramid={"source": "pyramid"},
    causal={"causal": True},
    causal_pyramid={"causal": True, "source": "pyramid"},
)
class FractalAttention(ContextAttention):
    """The ladder: read a context at O(log n) places, dense near t, sparse far away, alike on every
    scale.

    Four rows a level under a cubic B-spline, each level with a learnable share, so the kernel is
    sum_k a_k 2^-k beta(d / 2^k), a = softmax(level_logits). It is C^2 in t. For a kernel that is
    given, to a stated error, see `MultilevelAttention`.

    Args:
        depth: number of levels; default all that n has.
        source: ``"sample"`` reads rows of the grid of stride 2^k and needs no preparation;
            ``"pyramid"`` reads means over 2^k rows, prepared once in O(n).
        causal: read the past alone. Each level is moved back by two of its strides, so that the
            kernel is sum_k a_k 2^-k beta(d / 2^k - 2), d >= 0, and reads nodes of 2^k rows that
            have ended: their last rows, or with the pyramid their means.

    Causal: a row at t itself weighs 0 and grows from there as a cube, C^2; no row after t is
    touched. The first observed row is an exception: rows before it count as copies of it on level
    0, so a query at its own time, as at t = 0, reads it alone. Before it there is nothing to read,
    which is an error as in a gap (NaN in a compiled graph). A bin of irregular times reaches half a
    bin past its number, and is read from there on, the first too. Rows that are appended change
    nothing at or before the last: ask for row p, of n rows or of more, at t = p / (n - 1), in
    float64.

    Attributes:
        level_logits: (depth or 32,) float32 parameter, logits of the levels' shares.

    Takes ``observed``; takes ``times`` when it reads the pyramid. Complexity: 4 reads a level of H
    numbers each, ceil(log2 n) levels a query (one more of the pyramid). Sampled levels share rows:
    of the reads about half are of different rows, 41 of 80 for a million.

    Raises:
        ValueError: for a depth outside [1, 32] or another source.

    >>> attention = FractalAttention()
    >>> attention(torch.randn(8, 1000, 2), torch.rand(8, 3)).shape
    torch.Size([8, 3, 2])
    >>> attention.reads(torch.tensor([[0.3]]), 1000).indices.shape
    torch.Size([1, 1, 40])

    >>> values, causal = torch.randn(1, 1000, 2).double(), FractalAttention(causal=True)
    >>> def at_row(p, n):
    ...     return causal(values[:, :n], torch.tensor(p / (n - 1), dtype=torch.float64))
    >>> torch.allclose(at_row(60, 1000), at_row(60, 61), rtol=0, atol=1e-12)
    True
    """

    def __init__(self, depth: int | None = None, *, source: str = "sample", causal: bool = False):
        super().__init__()
        if source not in ("sample", "pyramid"):
            raise ValueError(f'source must be "sample" or "pyramid", got {source!r}')
        levels = MAX_LEVELS if depth is None else as_int(depth, "depth", 1, MAX_LEVELS)
        self.source, self.takes_times = source, source == "pyramid"
        self.causal = bool(causal)
        # of the past, a sampled ladder reads few rows while there are few
        few = self.causal and source == "sample"
        self.reach = "all" if depth is None and not few else "near"
        self.level_logits = nn.Parameter(torch.empty(levels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal shares."""
        nn.init.zeros_(self.level_logits)

    def extra_repr(self) -> str:
        """Depth, source, and whether it is causal."""
        causal = ", causal=True" if self.causal else ""
        return f"depth={len(self.level_logits)}, source={self.source!r}{causal}"

    def levels(self, n: int) -> int:
        """Number of levels read in a context of n rows."""
        # a sampled grid needs a stride below n; the pyramid's last node holds everything, and has
        # not ended before the last row
        whole = self.source == "pyramid" and not self.causal
        has = all_levels(n) if whole else max(all_levels(n) - 1, 1)
        return min(has, self.level_logits.shape[0])

    def tree(self, n: int) -> Tree:
        """The rows, or the whole tree over them."""
        return Tree(n, all_levels(n) if self.source == "pyramid" else 1)

    def prepare(self, values: Tensor, observed: Any = None, times: Any = None) -> Pyramid:
        """The `Pyramid`, or for ``source="sample"`` the rows as they are."""
        if self.source == "sample":
            return super().prepare(values, observed, times)
        return Pyramid(values, observed, times)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """Where to read for t (B, Q): (B, Q, 4 levels)."""
        x = position(t, tree.n)
        levels = self.levels(tree.n)
        stride = strides(levels, t.device)  # (L,)
        find = self._find_past if self.causal else self._find
        index, count, fraction = find(x, stride, tree)  # (B, Q, 4 L) twice, (B, Q, L)
        share = self.level_logits[:levels].double().softmax(0).unsqueeze(-1)  # (L, 1)
        weights = (share * bspline_weights(fraction)).flatten(-2) * count
        return Reads(index, average(weights))

    def _find(self, x: Tensor, stride: Tensor, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Packed index of what is read around x, the fraction of it that is there, and of x."""
        if self.source == "sample":
            node, fraction = stencil(x.unsqueeze(-1), stride)  # (B, Q, L, 4), (B, Q, L)
            return *tree.lookup(0, (node * stride.unsqueeze(-1)).flatten(-2)), fraction
        node, fraction = node_stencil(x, stride)
        return *self._pooled(node, stride, tree), fraction

    def _find_past(self, x: Tensor, stride: Tensor, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """The same of what had ended at x."""
        lag = 0.5 if tree.places == "bins" else 0.0
        node, fraction = node_stencil(x, stride, causal=True, lag=lag)  # (B, Q, L, 4), (B, Q, L)
        first = torch.as_tensor(tree.first, device=x.device).reshape(-1, 1, 1)  # (1 or B, 1, 1)
        # as soon as the first row is there, those before it count as copies of it
        rows = node[..., 0, :]
        rows = torch.where(x.unsqueeze(-1) >= first + lag, torch.maximum(rows, first), rows)
        node = torch.cat([rows.unsqueeze(-2), node[..., 1:, :]], -2)
        if self.source == "sample":
            last = (node + 1) * stride.unsqueeze(-1) - 1
            index, count = tree.lookup(0, last.flatten(-2))
        else:
            index, count = self._pooled(node, stride, tree)
        # a node before the start is looked up as the first one, which may hold later rows: a weight
        # of 0 does not keep their NaN away
        return torch.where(node.flatten(-2) < 0, first, index), count, fraction

    @staticmethod
    def _pooled(node: Tensor, stride: Tensor, tree: Tree) -> tuple[Tensor, Tensor]:
        level = torch.arange(len(stride), device=node.device).unsqueeze(-1).expand(-1, 4).flatten()
        index, count = tree.lookup(level, node.flatten(-2))
        return index, count / stride[level]

    def fit(self, kernel: Kernel, n: int) -> float:
        """Set the shares of the levels to the kernel's, by non-negative least squares.

        Args:
            kernel: the kernel to approach.
            n: number of rows it is meant for.

        Returns:
            largest error of sum_k a_k 2^-k beta(d / 2^k) against k(d), as a share of k(0), over all
            distances 0 <= d <= n - 1. One level an octave reaches 1 to 5 %, not more: for a stated
            error use `MultilevelAttention`. A causal ladder reads nothing at d = 0: it is fitted to
            k(d) at d >= 2, and its error, a share of k(2), is seldom below 10 %.

        Source: Lawson and Hanson (1974) for the least squares; chapter ``start/ladder``.

        >>> from fractal_lib import RationalQuadratic
        >>> FractalAttention().fit(RationalQuadratic(2.0, alpha=0.5), n=10_000) < 0.05
        True
        """
        nnls = optional("scipy.optimize", "FractalAttention.fit").nnls
        n = as_int(n, "n", least=1)
        levels = self.levels(n)
        near = np.arange(0, min(n - 1, 64) + 0.25, 0.25)
        d = np.concatenate([near, np.geomspace(1, max(n - 1, 1), 64 * levels)])[:, None]
        back = 2 if self.causal else 0  # in strides
        d = np.append(d[d > 2], 2.0)[:, None] if self.causal else d
        stride = 2.0 ** np.arange(levels)
        basis = bspline(torch.from_numpy(d / stride - back)).numpy() / stride
        with torch.no_grad():
            target = kernel(torch.from_numpy(d[:, 0]), n).numpy()
        share, _ = nnls(basis, target)
        with torch.no_grad():
            logits = torch.from_numpy(np.log(np.maximum(share / share.sum(), 1e-9)))
            self.level_logits[:levels] = logits.to(self.level_logits)
        return float(np.abs(basis @ share - target).max() / target.max())
