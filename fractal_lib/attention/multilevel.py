"""Multilevel summation: near rows one by one, far rows by cells that grow with distance.

The kernel is split into k = k_0 + k_1 + ... + k_L with a smooth step phi,

    k_0(d) = k(d) phi(d / w),   k_l(d) = k(d) [phi(d / (w 2^l)) - phi(d / (w 2^(l-1)))],

phi = 1 for the last, and k_l is read from cells of width 2^l: nodes of the `Pyramid`. Cells come
and go where their k_l is 0.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fractal_lib.attention.base import ContextAttention, Reads, pattern, position
from fractal_lib.attention.kernels import (
    Kernel,
    RationalQuadratic,
    as_kernel,
    smooth_step,
    smooth_step_slope,
)
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree, all_levels, strides
from fractal_lib.checks import as_int

__all__ = ["MultilevelAttention"]

ROUND_OFF = 1e-6  # of the absolute weight of a first moment


@pattern(
    "multilevel",
    four_cells={"kernel": lambda: RationalQuadratic(1.5, alpha=0.5), "cells": 4},
    moments={"kernel": lambda: RationalQuadratic(2.0), "cells": 6, "expansion": 1},
)
class MultilevelAttention(ContextAttention):
    """A given kernel to a given accuracy, in O(cells log n) reads: the reader with a bound.

    Rows near t are read one by one, rows further away by means over ever larger cells, the parts
    joined by a smooth step: an error that ``cells`` sets and `error_bound` tells.

    Args:
        kernel: any `Kernel`; the default is the original one. Heavy tails are what this is for.
        cells: w, cells on each side of t before they double in width; even, at least 4.
        expansion: 0 reads cell means (error ~ 1/w), 1 also first moments (error ~ 1/w^2), whose
            weights are signed. With missing rows or irregular times moments that would outweigh the
            means are faded out: the result is at most 2 max|value|, whatever the mask.

    Takes ``observed`` and ``times``. Complexity: (2w + 3) + (3w/2 + 4) ceil(log2(n / w)) reads of H
    numbers a query, twice that with expansion 1, after O(n H) once for the pyramid. Source:
    Brandt and Lubrecht (1990), Hardy et al. (2016) for multilevel summation; chapter
    ``start/ladder``.

    Raises:
        ValueError: for cells that are odd or fewer than 4, or another expansion.

    >>> attention = MultilevelAttention(RationalQuadratic(1.0, alpha=0.5))
    >>> attention(torch.randn(8, 1000, 2), torch.rand(8, 3)).shape
    torch.Size([8, 3, 2])
    >>> attention.reads(torch.tensor([[0.3]]), 100_000).indices.shape[-1]
    399
    """

    takes_times = True

    def __init__(self, kernel: Kernel | None = None, *, cells: int = 16, expansion: int = 0):
        super().__init__()
        cells = as_int(cells, "cells")
        if cells < 4 or cells % 2 or expansion not in (0, 1):
            raise ValueError(
                f"expected even cells >= 4 and expansion 0 or 1, got {cells=}, {expansion=}"
            )
        self.kernel = as_kernel(kernel)
        self.cells, self.expansion = cells, expansion
        self.kind = "moments" if expansion else "mean"

    def extra_repr(self) -> str:
        """Cells and expansion."""
        return f"cells={self.cells}, expansion={self.expansion}"

    def tree(self, n: int) -> Tree:
        """The whole tree of n rows."""
        return Tree(n, all_levels(n))

    def prepare(self, values: Tensor, observed: Any = None, times: Any = None) -> Pyramid:
        """The `Pyramid`, with first moments if they are read."""
        return Pyramid(values, observed, times, expansion=self.expansion)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """Where to read for t (B, Q): (B, Q, K), twice as many with expansion 1."""
        return _reads(position(t, tree.n), tree, self.kernel, self.cells, self.expansion)

    def error_bound(self, n: int, gaps: bool = False) -> float:
        """Largest error of the result, per unit of the rows' largest magnitude.

        Args:
            n: number of evenly spaced rows.
            gaps: True if any rows may be missing (a much looser bound; with expansion 1 at least
                that of expansion 0 where first moments may be faded out).

        Returns:
            the bound, or inf if the cells are too few for this kernel at this n. It is exact
            arithmetic's: rounding comes on top.

        Complexity: O(n log n). Source: chapter ``start/ladder``.

        >>> MultilevelAttention(RationalQuadratic(1.0), cells=16).error_bound(16)  # all are near
        0.0
        """
        n = as_int(n, "n", least=1)
        return _bound(n, self.kernel, self.cells, self.expansion, gaps)


def _num_levels(n: int, w: int) -> int:
    """Number of levels: the smallest L + 1 with w 2^L >= n.

    >>> [_num_levels(n, 16) for n in (16, 17, 100_000)]
    [1, 2, 14]
    """
    return all_levels(-(-n // w))


def _share(d: Tensor, level: Tensor, top: int, w: int, step) -> Tensor:
    """``k_l / k`` with step = `smooth_step`; with `smooth_step_slope`, its derivative in d."""
    outer, inner = w * 2.0**level, w * 2.0 ** (level - 1)
    slope = step is smooth_step_slope
    out = step(d / outer) / (outer if slope else 1)
    out = torch.where(level == top, 0.0 if slope else 1.0, out)
    return out - torch.where(level == 0, 0.0, step(d / inner) / (inner if slope else 1))


def _stencil(top: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Level and offset of each cell to read, (K,) both: 2 w + 3 at level 0, a ring above."""
    near = torch.arange(-w - 1, w + 2, device=device)
    # inside |offset| + 1 <= w / 4 the step of the level below is still 1, so k_l is 0
    ring = torch.cat([near[: w + 2 - w // 4], near[w + 1 + w // 4 :]])
    level = torch.arange(1, top + 1, device=device).unsqueeze(-1).expand(-1, len(ring)).flatten()
    return torch.cat([torch.zeros_like(near), level]), torch.cat([near, ring.repeat(top)])


def _reads(x: Tensor, tree: Tree, kernel: Kernel, w: int, expansion: int) -> Reads:
    """Reads of a packed `Pyramid` for positions x (B, Q): O(w log2(n / w)) of them.

    With expansion 1 as many again, of the first moments (the second half of the packing), whose
    weights are signed and are not part of the sum that is 1.
    """
    top = _num_levels(tree.n, w) - 1
    level, offset = _stencil(top, w, x.device)
    x = x.unsqueeze(-1)  # (B, Q, 1)
    stride = strides(top + 1, x.device)[level]
    cell = ((x.detach() + 0.5) / stride).floor().long() + offset  # (B, Q, K)
    index, count = tree.lookup(level, cell)
    d = x - tree.centroid(level, cell)
    share = _share(d, level, top, w, smooth_step)
    factor = share * count
    log_k = kernel.log(d, tree.n).masked_fill(factor == 0, -torch.inf)
    k = (log_k - log_k.detach().amax(-1, keepdim=True)).exp()
    total = (k * factor).sum(-1, keepdim=True)
    weight = k * factor / total
    if expansion == 0:
        return Reads(index, weight)
    slope = kernel.dlog(d, tree.n) * share + _share(d, level, top, w, smooth_step_slope)
    moment = -k * slope * count * stride / total
    if tree.counts is not None:
        moment = moment * _fade(moment, stride, tree)
    return Reads(torch.cat([index, index + sum(tree.sizes)], -1), torch.cat([weight, moment], -1))


def _fade(moment: Tensor, stride: Tensor, tree: Tree) -> Tensor:
    """What first moments are multiplied by, (B, Q, 1): 1 in a complete sample, else 1 to 0.

    Where near rows are missing, cells that hardly count become all that is left, and the slope of a
    narrow kernel over such a cell is many times its value. Rows of a cell lie on a length of
    stride - 1 (of bins: stride), so their mean distance from the centroid is at most half of that,
    and moments whose weights have the size S = sum |weight| length / stride add at most S / 2
    max|value|. They count in full up to S = 1 and not at all from S = 2.
    """
    length = stride - 1 if tree.places == "rows" else stride
    # |weight| rounded off at 0, so that the result stays smooth in t; from above
    size = ((moment * length / stride).square() + ROUND_OFF**2).sqrt().sum(-1, keepdim=True)
    fade = smooth_step(size / 2)
    if tree.counts is None or tree.places != "rows":
        return fade
    complete = tree.counts[:, -1:] == tree.n  # of the root
    return torch.where(complete.unsqueeze(-1), 1.0, fade)


def _bound(n: int, kernel: Kernel, w: int, expansion: int, gaps: bool) -> float:
    """Bound of the error for |value| <= 1; see `MultilevelAttention.error_bound`.

    A row at distance d is read as if it stood at its cell's centroid, at most h away, so k_l errs
    by at most e_1 = h sup|k_l'| with expansion 0 and e_2 = h^2/2 sup|k_l''| with expansion 1, the
    sup over [d - h, d + h]. Offsets of a cell's rows from their own mean sum to 0, so the sum of
    weights errs by e_2 in either expansion. Relative to sum k these are epsilon and delta, and the
    quotient errs by at most (epsilon + delta) / (1 - delta). The sup is taken on a grid of 1/32
    cell, widened by a step.
    """
    top = _num_levels(n, w) - 1
    distance = d = torch.arange(n, dtype=torch.float64)
    # of expansion 0 and 1, for a row at distance [d, d + 1]
    error = torch.zeros(2, n, dtype=torch.float64)
    for level in range(1, top + 1):
        h = _cell_reach(level, gaps)
        step = 2.0**level / 32
        d = torch.arange(
            0, (n if level == top else w * 2**level) + h + 2, step, dtype=torch.float64
        )
        slope, curvature = _derivatives(d, level, top, kernel, w, n)
        reach = int((h + 1) / step) + 2
        grid = (distance / step).round().long()
        for row, size in ((0, h * slope.abs()), (1, h**2 / 2 * curvature.abs())):
            sup = nn.functional.max_pool1d(
                size[None, None], 2 * reach + 1, stride=1, padding=reach
            )[0, 0]
            error[row, grid < len(d)] += sup[grid[grid < len(d)]]
    value = kernel(distance + 1, n).detach()  # the least k on [d, d + 1]
    if not gaps:  # sums over one side of t; with gaps any row may be alone
        error, value = error.cumsum(1), value.cumsum(0)
    worst = torch.where(error == 0, 0.0, error / value).amax(1)
    epsilon, delta = float(worst[expansion]), float(worst[1])
    if delta >= 1:
        return float("inf")
    if gaps and expansion:  # the size of the moments, see `_fade`, is that of what they correct
        size = float(worst[0]) / (1 - delta) + ROUND_OFF * len(_stencil(top, w, d.device)[0])
        epsilon = max(epsilon, float(worst[0])) if size > 1 else epsilon
    return (epsilon + delta) / (1 - delta)


def _cell_reach(level: int, gaps: bool) -> float:
    """How far a row may be from the centroid of the observed rows of its cell, in rows.

    The middle, unless rows are missing: then nearly all may stand at the other end.

    >>> _cell_reach(3, gaps=False), _cell_reach(3, gaps=True)
    (3.5, 7.0)
    """
    return (2.0**level - 1) * (1 if gaps else 0.5)


@torch.enable_grad()
def _derivatives(
    d: Tensor, level: int, top: int, kernel: Kernel, w: int, n: int
) -> tuple[Tensor, Tensor]:
    """First and second derivative of ``k_l`` at d."""
    d = d.clone().requires_grad_()
    part = kernel(d, n) * _share(d, torch.tensor(level), top, w, smooth_step)
    (slope,) = torch.autograd.grad(part.sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    return slope.detach(), curvature
