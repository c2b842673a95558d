"""A given kernel to a given accuracy: near rows one by one, far rows by cells that grow with distance.

The kernel is split into k = k_0 + k_1 + ... + k_L with a smooth step phi,

    k_0(d) = k(d) phi(d / w),   k_l(d) = k(d) [phi(d / (w 2^l)) - phi(d / (w 2^(l-1)))],

phi = 1 for the last, and k_l is read from cells of width 2^l. Cells come and go where their k_l is 0.
"""

import torch
from torch import Tensor, nn

from fractal_lib.attention.cells import Cells, all_levels, strides
from fractal_lib.attention.kernels import Kernel, smooth_step, smooth_step_slope
from fractal_lib.attention.reads import Reads


def telescope_levels(n: int, w: int) -> int:
    """Number of levels: the smallest L + 1 with w 2^L >= n.

    >>> [telescope_levels(n, 16) for n in (16, 17, 100_000)]
    [1, 2, 14]
    """
    return all_levels(-(-n // w))


def _share(d: Tensor, level: Tensor, top: int, w: int, step) -> Tensor:
    """``k_l / k`` (step = `smooth_step`), or the derivative of it in d (step = `smooth_step_slope`)."""
    outer, inner = w * 2.0**level, w * 2.0 ** (level - 1)
    slope = step is smooth_step_slope
    out = step(d / outer) / (outer if slope else 1)
    out = torch.where(level == top, 0.0 if slope else 1.0, out)
    return out - torch.where(level == 0, 0.0, step(d / inner) / (inner if slope else 1))


def _stencil(top: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Level and offset of each cell to read, (K,) both: 2 w + 3 at level 0, a ring of them above."""
    near = torch.arange(-w - 1, w + 2, device=device)
    # inside |offset| + 1 <= w / 4 the step of the level below is still 1, so k_l is 0
    ring = torch.cat([near[: w + 2 - w // 4], near[w + 1 + w // 4 :]])
    level = torch.arange(1, top + 1, device=device).unsqueeze(-1).expand(-1, len(ring)).flatten()
    return torch.cat([torch.zeros_like(near), level]), torch.cat([near, ring.repeat(top)])


def telescope_reads(x: Tensor, cells: Cells, kernel: Kernel, w: int, order: int) -> Reads:
    """Reads of a packed `Pyramid` for positions x (B, Q): O(w log2(n / w)) of them.

    With order 1 as many again, of the first moments (the second half of the packing), whose weights
    are signed and are not part of the sum that is 1.
    """
    top = telescope_levels(cells.n, w) - 1
    level, offset = _stencil(top, w, x.device)
    x = x.unsqueeze(-1)  # (B, Q, 1)
    stride = strides(top + 1, x.device)[level]
    cell = ((x.detach() + 0.5) / stride).floor().long() + offset  # (B, Q, K)
    index, count = cells.look(level, cell)
    d = x - cells.centre(level, cell)
    share = _share(d, level, top, w, smooth_step)
    factor = share * count
    log_k = kernel.log(d, cells.n).masked_fill(factor == 0, -torch.inf)
    k = (log_k - log_k.detach().amax(-1, keepdim=True)).exp()
    total = (k * factor).sum(-1, keepdim=True)
    weight = k * factor / total
    if order == 0:
        return Reads(index, weight)
    slope = kernel.dlog(d, cells.n) * share + _share(d, level, top, w, smooth_step_slope)
    moment = -k * slope * count * stride / total
    return Reads(torch.cat([index, index + sum(cells.sizes)], -1), torch.cat([weight, moment], -1))


def telescope_bound(n: int, kernel: Kernel, w: int, order: int, gaps: bool) -> float:
    """Bound of the error of the result for rows with |value| <= 1; see `FractalAttention.error_bound`.

    A row at distance d is read as if it stood at its cell's centre, at most h away, so k_l errs by
    at most e_1 = h sup|k_l'| to order 0 and e_2 = h^2/2 sup|k_l''| to order 1, the sup over
    [d - h, d + h]. Offsets of a cell's rows from their own mean sum to 0, so the sum of weights errs
    by e_2 in either order. Relative to sum k these are epsilon and delta, and the quotient errs by
    at most (epsilon + delta) / (1 - delta). The sup is taken on a grid of 1/32 cell, widened by a step.
    """
    top = telescope_levels(n, w) - 1
    distance = torch.arange(n, dtype=torch.float64)
    error = torch.zeros(2, n, dtype=torch.float64)  # of order 0 and 1, for a row at distance [d, d + 1]
    for level in range(1, top + 1):
        h = (2.0**level - 1) * (1 if gaps else 0.5)
        step = 2.0**level / 32
        d = torch.arange(0, (n if level == top else w * 2**level) + h + 2, step, dtype=torch.float64)
        slope, curvature = _derivatives(d, level, top, kernel, w, n)
        reach = int((h + 1) / step) + 2
        grid = (distance / step).round().long()
        for row, size in ((0, h * slope.abs()), (1, h**2 / 2 * curvature.abs())):
            sup = nn.functional.max_pool1d(size[None, None], 2 * reach + 1, stride=1, padding=reach)[0, 0]
            error[row, grid < len(d)] += sup[grid[grid < len(d)]]
    value = kernel(distance + 1, n)  # the least k on [d, d + 1]
    if not gaps:  # sums over one side of t; with gaps any row may be alone
        error, value = error.cumsum(1), value.cumsum(0)
    worst = torch.where(error == 0, 0.0, error / value).amax(1)
    epsilon, delta = float(worst[order]), float(worst[1])
    return (epsilon + delta) / (1 - delta) if delta < 1 else float("inf")


@torch.enable_grad()
def _derivatives(d: Tensor, level: int, top: int, kernel: Kernel, w: int, n: int) -> tuple[Tensor, Tensor]:
    """First and second derivative of ``k_l`` at d."""
    d = d.clone().requires_grad_()
    part = kernel(d, n) * _share(d, torch.tensor(level), top, w, smooth_step)
    (slope,) = torch.autograd.grad(part.sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    return slope.detach(), curvature
