"""The rows around t and no others: exact, to a stated tail, when the kernel is narrow."""

import torch
from torch import Tensor

from fractal_lib.attention.cells import Cells
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
        self._radii: dict[int, int] = {}

    def radius(self, n: int) -> int:
        """An r beyond which twice the kernel, over the kernel at the nearest row, is at most tail.

        The nearest row is at most 1/2 away and the rows left out at least r + 1/2, 1 apart, on two
        sides. The smallest such r, but for a remainder of 1 % of the tail. O(r) once for each n.
        """
        if n not in self._radii:
            self._radii[n] = self._find_radius(n)
        return self._radii[n]

    def _find_radius(self, n: int) -> int:
        known = 64
        while True:
            known = min(known, n)
            value = self.kernel(torch.arange(known + 1, dtype=torch.float64) + 0.5, n)
            rest = (n - known) * value[-1]  # k falls, so what lies beyond weighs no more than this
            if known == n or rest < 0.01 * self.tail * value[0]:
                break
            known *= 2
        beyond = 2 * (value[:-1].flip(0).cumsum(0).flip(0) + rest)  # [r]: twice the sum of k(r + 1/2), ...
        return min(int((beyond > self.tail * value[0]).sum()), n - 1)

    def reads(self, t: Tensor, n: int | Cells) -> Reads:
        """The window's rows for t (B, Q): index and weight (B, Q, 2 r + 1); rows off the end weigh 0."""
        cells = n if isinstance(n, Cells) else Cells(n, 1)
        radius = self.radius(cells.n)
        x = position(t, cells.n).unsqueeze(-1)  # (B, Q, 1)
        offset = torch.arange(-radius, radius + 1, device=t.device)
        row = x.detach().round().long() + offset  # (B, Q, 2 r + 1)
        index, count = cells.look(0, row)
        return Reads(index, normalise(self.kernel.log(x - cells.centre(0, row), cells.n), count))
