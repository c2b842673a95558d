"""The rows around t and no others: exact, to a stated tail, when the kernel is narrow."""

from functools import lru_cache

import torch
from torch import Tensor

from fractal_lib.attention.base import ContextAttention, Reads, normalise, pattern, position
from fractal_lib.attention.kernels import Kernel, OriginalKernel
from fractal_lib.attention.tree import Tree, all_levels, constant_result

__all__ = ["WindowAttention"]


@pattern("window")
class WindowAttention(ContextAttention):
    """A query-centred window of 2 r + 1 rows, r such that what is left out weighs at most ``tail``.

    Args:
        kernel: any `Kernel`; the default is the original one, for which r = 5 at the default tail.
            A learnable kernel changes r as it learns; in a compiled graph it must not be learnable.
        tail: largest share of the weights that may lie outside the window, in (0, 1). In a complete
            context the result errs, and jumps where a row enters or leaves, by at most
            2 tail max|value|.

    Complexity: O(r H) per query, whatever n is, if the kernel is narrow; a heavy tail drives r to
    n. Takes ``observed``: a gap longer than the window is an error. Source: chapter
    ``start/exact_window``.

    >>> WindowAttention().radius(10**6)
    5
    """

    smooth = False
    reach = "near"

    def __init__(self, kernel: Kernel | None = None, *, tail: float = 1e-9):
        super().__init__()
        if not 0 < tail < 1:
            raise ValueError(f"tail must lie in (0, 1), got {tail}")
        self.kernel = OriginalKernel() if kernel is None else kernel
        self.tail = tail

    def extra_repr(self) -> str:
        """The tail."""
        return f"tail={self.tail:g}"

    def radius(self, n: int) -> int:
        """An r beyond which twice the kernel, over the kernel at the nearest row, is at most tail.

        The nearest row is at most 1/2 away and the rows left out at least r + 1/2, 1 apart, on two
        sides. Hardly more than the smallest such r, for n rounded up to a power of two. O(r), once
        for each state of the kernel.
        """
        if self.kernel.learnable and torch.compiler.is_compiling():
            raise RuntimeError(
                "a window whose kernel is learnable cannot be compiled: its number of rows follows "
                "a parameter; compile what is around it"
            )
        # n rounded up to a power of two: the radius grows with n, and a graph is compiled anew only
        # for another power
        return min(_radius(self.kernel, self.tail, 2 ** (all_levels(n) - 1)), n - 1)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """The window's rows for t (B, Q): (B, Q, 2 r + 1); rows off the end weigh 0."""
        radius = self.radius(tree.n)
        x = position(t, tree.n).unsqueeze(-1)  # (B, Q, 1)
        offset = torch.arange(-radius, radius + 1, device=t.device)
        row = x.detach().round().long() + offset  # (B, Q, 2 r + 1)
        index, count = tree.lookup(0, row)
        return Reads(index, normalise(self.kernel.log(x - tree.centroid(0, row), tree.n), count))


@constant_result
def _radius(kernel: Kernel, tail: float, n: int) -> int:
    return _find_radius(_Frozen(kernel), tail, n)


class _Frozen:
    """A kernel with the values that it has now: equal to another of the same values."""

    def __init__(self, kernel: Kernel):
        self.kernel, self.state = kernel, kernel.state()

    def __hash__(self) -> int:
        return hash(self.state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self.state == other.state


@lru_cache(maxsize=1024)
@torch.no_grad()
def _find_radius(frozen: _Frozen, tail: float, n: int) -> int:
    known = 64
    while True:
        known = min(known, n)
        distance = torch.arange(known + 1, dtype=torch.float64, device="cpu") + 0.5
        value = frozen.kernel(distance, n).cpu()
        rest = (n - known) * value[-1]  # k falls, so what lies beyond weighs no more than this
        if known == n or rest < 0.01 * tail * value[0]:
            break
        known *= 2
    # [r]: twice the sum of k(r + 1/2), ...
    beyond = 2 * (value[:-1].flip(0).cumsum(0).flip(0) + rest)
    return int((beyond > tail * value[0]).sum())
