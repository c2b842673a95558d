"""The rows around t and no others: exact, to a stated tail, when the kernel is narrow."""

import math

import torch
from torch import Tensor

from fractal_lib.attention.base import ContextAttention, Reads, normalise, pattern, position
from fractal_lib.attention.kernels import Kernel, as_kernel
from fractal_lib.attention.tree import Tree, all_levels, constant_result, strides
from fractal_lib.checks import as_int, kept, require

__all__ = ["WindowAttention"]

ONE_BY_ONE = 64  # rows beyond the window that are weighed each; further out, by blocks


@pattern("window")
class WindowAttention(ContextAttention):
    """A query-centred window of 2 r + 1 rows, r such that what is left out weighs at most ``tail``.

    Args:
        kernel: any `Kernel`; the default is the original one, for which r = 5 at the default tail.
            A learnable kernel changes r as it learns; in a compiled graph it must not be learnable.
        tail: largest share of the weights that may lie outside the window, in (0, 1).
        gap: rows that may be missing in a row, in the middle or at an end, without an error: r is
            so large that a row gap + 1/2 away still outweighs what is left out.

    The result errs, and jumps where a row enters or leaves, by at most 2 tail max|value|, whatever
    ``observed`` is: where so many rows are missing around t that the window cannot promise it,
    there is an error, or NaN in a compiled graph and under vmap.

    Raises:
        TypeError, ValueError: for a kernel, tail or gap that is not as said. ValueError, when
            called, for a gap that is too long. RuntimeError for a learnable kernel in a compiled
            graph.

    Complexity: O(r H) per query, whatever n is, if the kernel is narrow; a heavy tail drives r to
    n. Takes ``observed``. Source: chapter ``start/exact_window``.

    >>> WindowAttention().radius(10**6), WindowAttention(gap=10).radius(10**6)
    (5, 12)
    """

    smooth = False
    reach = "near"

    def __init__(self, kernel: Kernel | None = None, *, tail: float = 1e-9, gap: int = 0):
        super().__init__()
        if not 0 < tail < 1:
            raise ValueError(f"tail must lie in (0, 1), got {tail}")
        self.kernel = as_kernel(kernel)
        self.tail, self.gap = float(tail), as_int(gap, "gap", least=0)

    def extra_repr(self) -> str:
        """The tail, and the gap if there is one."""
        return f"tail={self.tail:g}" + (f", gap={self.gap}" if self.gap else "")

    def radius(self, n: int) -> int:
        """An r beyond which twice the kernel, over the kernel at the nearest row, is at most tail.

        The nearest row is at most gap + 1/2 away and the rows left out at least r + 1/2, 1 apart,
        on two sides. Hardly more than the smallest such r, for n rounded up to a power of two.
        O(r), once for each state of the kernel.
        """
        if self.kernel.learnable and torch.compiler.is_compiling():
            raise RuntimeError(
                "a window whose kernel is learnable cannot be compiled: its number of rows follows "
                "a parameter; compile what is around it"
            )
        # n rounded up to a power of two: the radius grows with n, and a graph is compiled anew only
        # for another power
        power = 2 ** (all_levels(n) - 1)
        return min(_radius(self, power), n - 1)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """The window's rows for t (B, Q): (B, Q, 2 r + 1); rows off the end weigh 0."""
        radius = self.radius(tree.n)
        x = position(t, tree.n).unsqueeze(-1)  # (B, Q, 1)
        offset = torch.arange(-radius, radius + 1, device=t.device)
        row = x.detach().round().long() + offset  # (B, Q, 2 r + 1)
        index, count = tree.lookup(0, row)
        log_k = self.kernel.log(x - tree.centroid(0, row), tree.n)
        weights = normalise(log_k, count)
        if tree.counts is None or radius == tree.n - 1:
            return Reads(index, weights)
        # The promise holds by the choice of r where all rows are there; else it is looked after.
        inside = (log_k.detach() + count.log()).logsumexp(-1)  # (B, Q)
        near = inside + math.log(self.tail) >= self._log_left_out(radius, tree, t.device)
        require(
            near.all,
            f"no observed row lies near enough to t: in a window of {2 * radius + 1} rows what is "
            f"left out could weigh more than tail = {self.tail:g}; pass gap= (missing rows in a "
            "row), or use FractalAttention or DenseAttention",
        )
        return Reads(index, weights.masked_fill(~near.unsqueeze(-1), torch.nan))

    @torch.no_grad()
    def _log_left_out(self, radius: int, tree: Tree, device: torch.device) -> Tensor:
        """Logarithm of the most that the rows left out can weigh: a number, or (B, 1).

        On each side they are at least r + 1/2 away, and 1 apart: one by one, then in blocks of 64,
        128, ... rows, each as if it stood at the nearest. Rows of a bin stand up to 1/2 nearer.
        """
        far = ONE_BY_ONE * strides(all_levels(tree.n), device)
        each = torch.arange(ONE_BY_ONE, device=device)
        start = torch.cat([each, far])  # rows between the first that is left out and the block
        size = torch.cat([torch.ones_like(each), far])
        size = torch.minimum(size, tree.n - 1 - start).clamp(min=0).double()
        distance = start.double() + radius + (0.5 if tree.places == "rows" else 0.0)
        one_side = (size.log() + self.kernel.log(distance, tree.n)).logsumexp(0)
        most = torch.as_tensor(tree.most, device=device).double()
        return one_side + (2 * most).log().unsqueeze(-1)


@constant_result
def _radius(window: WindowAttention, n: int) -> int:
    return _find_radius(_Frozen(window.kernel), window.tail, window.gap, n)


class _Frozen:
    """A kernel with the values that it has now: equal to another of the same values."""

    def __init__(self, kernel: Kernel):
        self.kernel, self.state = kernel, kernel.state()

    def __hash__(self) -> int:
        return hash(self.state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self.state == other.state


@kept(maxsize=1024)
def _find_radius(frozen: _Frozen, tail: float, gap: int, n: int) -> int:
    known = 64
    while True:
        known = min(known, n)
        distance = torch.arange(known + 1, dtype=torch.float64) + 0.5
        nearest = torch.tensor(gap + 0.5, dtype=torch.float64)
        # relative to the nearest row, whose own value may be below the least float64
        log_k = frozen.kernel.log(distance, n).cpu() - frozen.kernel.log(nearest, n).cpu()
        value = log_k.clamp(max=700).exp()
        rest = (n - known) * value[-1]  # k falls, so what lies beyond weighs no more than this
        if known == n or rest < 0.01 * tail:
            break
        known *= 2
    # [r]: twice the sum of k(r + 1/2), ...
    beyond = 2 * (value[:-1].flip(0).cumsum(0).flip(0) + rest)
    # a gap may leave one row alone, with which the bound by blocks, below twice the sum, must do
    return int((beyond > (tail / 2 if gap else tail)).sum())
