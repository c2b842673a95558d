"""The rows around t and no others: exact, to a stated tail, when the kernel is narrow."""

from functools import lru_cache

import torch
from torch import Tensor

from fractal_lib.attention.cells import Cells, all_levels
from fractal_lib.attention.kernels import Kernel, OriginalKernel
from fractal_lib.attention.reads import ContextAttention, Reads, normalise, position


class WindowAttention(ContextAttention):
    """A query-centred window of 2 r + 1 rows, r chosen so that what is left out weighs at most ``tail``.

    Args:
        kernel: any `Kernel`; the default is the original one, for which r = 5 at the default tail.
        tail: largest share of the weights that may lie outside the window, in (0, 1). The result
            errs, and jumps where a row enters or leaves, by at most 2 tail max|row|.

    Complexity: O(r H) per query, whatever n is, if the kernel is narrow; a heavy tail drives r to n.
    Takes ``observed``: a gap longer than the window is an error. Source: chapter ``start/exact_window``.

    >>> WindowAttention().radius(10**6)
    5
    """

    def __init__(self, kernel: Kernel | None = None, tail: float = 1e-9):
        super().__init__()
        if not 0 < tail < 1:
            raise ValueError(f"tail must lie in (0, 1), got {tail}")
        self.kernel = OriginalKernel() if kernel is None else kernel
        self.tail = tail

    def radius(self, n: int) -> int:
        """An r beyond which twice the kernel, over the kernel at the nearest row, is at most tail.

        The nearest row is at most 1/2 away and the rows left out at least r + 1/2, 1 apart, on two
        sides. Hardly more than the smallest such r, for n rounded up to a power of two. O(r), once.
        """
        # n rounded up to a power of two: the radius grows with n, and a graph is compiled anew only for
        # another power
        return min(_radius(self.kernel, self.tail, 2 ** (all_levels(n) - 1)), n - 1)

    def reads(self, t: Tensor, n: int | Cells) -> Reads:
        """The window's rows for t (B, Q): index and weight (B, Q, 2 r + 1); rows off the end weigh 0."""
        cells = n if isinstance(n, Cells) else Cells(n, 1)
        radius = self.radius(cells.n)
        x = position(t, cells.n).unsqueeze(-1)  # (B, Q, 1)
        offset = torch.arange(-radius, radius + 1, device=t.device)
        row = x.detach().round().long() + offset  # (B, Q, 2 r + 1)
        index, count = cells.look(0, row)
        return Reads(index, normalise(self.kernel.log(x - cells.centre(0, row), cells.n), count))


@torch.compiler.assume_constant_result  # a number that follows from numbers: no part of a graph
def _radius(kernel: Kernel, tail: float, n: int) -> int:
    return _find_radius(kernel, tail, n)


@lru_cache(maxsize=1024)
def _find_radius(kernel: Kernel, tail: float, n: int) -> int:
    known = 64
    while True:
        known = min(known, n)
        value = kernel(torch.arange(known + 1, dtype=torch.float64) + 0.5, n)
        rest = (n - known) * value[-1]  # k falls, so what lies beyond weighs no more than this
        if known == n or rest < 0.01 * tail * value[0]:
            break
        known *= 2
    beyond = 2 * (value[:-1].flip(0).cumsum(0).flip(0) + rest)  # [r]: twice the sum of k(r + 1/2), ...
    return int((beyond > tail * value[0]).sum())
