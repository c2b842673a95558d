"""A dust of offsets around t: dense near it, sparse far away, n^D of them (chapter
``gallery/julia``).
"""

import cmath
import math
import numbers

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fractal_lib.attention.base import ContextAttention, Reads, normalise, pattern, position
from fractal_lib.attention.kernels import Kernel, RationalQuadratic, as_kernel
from fractal_lib.attention.tree import Tree, all_levels, constant_result
from fractal_lib.checks import kept
from fractal_lib.curves.julia import escape_radius
from fractal_lib.curves.splines import bspline_weights, stencil

__all__ = ["JuliaAttention"]


@pattern("julia", given_kernel={"c": -2.5, "kernel": lambda: RationalQuadratic(2.0, alpha=0.5)})
class JuliaAttention(ContextAttention):
    """Read the rows whose distance from t lies in a Julia set, seen from its outermost point.

    For real c < -2 the Julia set of z^2 + c is a dust on [-r, r], r = `escape_radius`. Its tip r is
    laid on the query and its other end n' - 1 rows away, on both sides (n' is n rounded up to a
    power of two); the whole distances that it meets are the `offsets`. Offset o is read at t's
    position + o, by the cubic B-spline over four rows, and weighs k(o). The offsets do not move
    with t, so the result is C^2 in t, and no row comes in with a weight.

    Args:
        c: real, below -2: the dial. Close to -2 nearly every distance is read, far below hardly
            any.
        kernel: any `Kernel`, or None for (1 + o^2)^(-a / 2) with a learnable a = `exponent`.

    Attributes:
        raw_exponent: (1,) float32 parameter, from which the exponent follows; None with a kernel.

    Takes ``observed``: where every row that is read is missing, it is an error. Complexity: some
    8.6 n^D reads of H numbers per query at c = -6 (3.5 n^D at -2.1, 10 n^D at -20), D =
    ``julia_dimension(c)``: a power of n, not a logarithm. The
    offsets are found once for each power of two, in O(n + n^D log^2 n), and kept. Source: Fatou and
    Julia (1917-1918) for the dust; chapter ``gallery/julia``.

    Raises:
        ValueError: if c is not a finite real number below -2.

    >>> attention = JuliaAttention(c=-6)
    >>> attention(torch.randn(8, 1000, 2), torch.rand(8, 3)).shape
    torch.Size([8, 3, 2])
    >>> attention.offsets(64)[attention.offsets(64) >= 0]
    tensor([ 0,  2, 10, 11, 13, 50, 52, 53, 61, 63])
    """

    def __init__(self, c: float = -6.0, kernel: Kernel | None = None):
        super().__init__()
        if not isinstance(c, numbers.Number | np.generic):
            raise TypeError(f"c must be a number, got {type(c).__name__}")
        if not cmath.isfinite(c) or complex(c).imag or complex(c).real >= -2:
            raise ValueError(f"c must be a finite real number below -2, got {c}")
        self.c, self.kernel = complex(c).real, None if kernel is None else as_kernel(kernel)
        self.raw_exponent = nn.Parameter(torch.empty(1)) if kernel is None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """An exponent of 1."""
        if self.raw_exponent is not None:
            nn.init.constant_(self.raw_exponent, math.log(math.e - 1))  # softplus of it is 1

    def extra_repr(self) -> str:
        """The dial."""
        return f"c={self.c:g}"

    @property
    def exponent(self) -> Tensor | None:
        """(1,) float64, positive: how fast weights fall with the offset; None with a kernel."""
        return None if self.raw_exponent is None else softplus(self.raw_exponent.double())

    def offsets(self, n: int) -> Tensor:
        """The distances that are read in a context of n rows: int64, ascending, the same on both
        sides of 0.
        """
        one_side = np.flatnonzero(_dust(self.c, _round_up(n)))
        return torch.from_numpy(np.concatenate([-one_side[:0:-1], one_side]))

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """Where to read for t (B, Q): (B, Q, K), each row once; rows off the end weigh 0."""
        row, offset, present = _stencil(self, _round_up(tree.n), t.device)  # (K,), (K, 4), (K, 4)
        four, fraction = stencil(position(t, tree.n), 1)  # (B, Q, 4), (B, Q)
        log_k = self._log_kernel(offset.double(), tree.n).masked_fill(~present, -torch.inf)
        top = log_k.amax(-1)  # (K,): split off, so that a narrow kernel does not underflow far away
        share = (bspline_weights(fraction).unsqueeze(-2) * (log_k - top.unsqueeze(-1)).exp()).sum(
            -1
        )
        index, count = tree.lookup(0, four[..., 1:2] + row)
        return Reads(index, normalise(top.expand(share.shape), share * count))

    def _log_kernel(self, d: Tensor, n: int) -> Tensor:
        exponent = self.exponent
        if self.kernel is not None or exponent is None:
            return as_kernel(self.kernel).log(d, n)
        return -exponent / 2 * torch.log1p(d.square())


def _round_up(n: int) -> int:
    """The least power of two that is at least n: a graph is compiled anew only for another one."""
    return 2 ** (all_levels(n) - 1)


@constant_result
def _stencil(
    attention: JuliaAttention, n: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    return _find_stencil(attention.c, n, device)


@kept()
def _find_stencil(c: float, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What is read, counted from the row below the query: rows (K,), their offsets (K, 4), which of
    these are in the dust.

    The spline of offset o covers the rows o - 1 to o + 2. Turned around: row j takes part, as the
    first to the fourth of them, in the offsets j + 1 to j - 2, as far as they are in the dust.
    """
    one_side = np.pad(_dust(c, n), (0, 3))  # (n + 3,): beyond the end there is nothing
    both = np.concatenate([one_side[:0:-1], one_side])  # of the offsets -n - 2 to n + 2
    # row j = -n has offsets -n + 1 to -n - 2
    present = np.lib.stride_tricks.sliding_window_view(both, 4)[:, ::-1]
    row = np.flatnonzero(present.any(1))
    offset = (row - n)[:, None] - np.arange(-1, 3)
    row, offset, present = (
        torch.from_numpy(np.ascontiguousarray(table)).to(device)
        for table in (row - n, offset, present[row])
    )
    return row, offset, present


@kept()
def _dust(c: float, n: int) -> np.ndarray:
    """(n,) bool: does the dust, laid over [0, n - 1] with its tip on 0, hold a point within 1/2 of
    each whole number?

    Intervals that together hold all of the dust are split until none is longer than one row. Then
    their ends, which belong to it, name all the numbers that it meets. An interval is named by its
    itinerary, the sides of 0 on which its points are, round after round; its ends follow by going
    backwards from -r and r.
    """
    r = escape_radius(c)
    met = np.zeros(n, dtype=bool)
    sides, rounds = np.zeros(1, dtype=np.int64), 0  # bit j: the side, j rounds before the last
    while len(sides):
        ends = np.full((len(sides), 2), (-r, r))
        for bit in range(rounds):
            root = np.sqrt(ends - c)
            ends = np.where((sides >> bit & 1)[:, None], root, -root)
        distance = (r - ends) * ((n - 1) / (2 * r))
        long = np.abs(distance[:, 0] - distance[:, 1]) > 1
        met[np.rint(distance[~long]).astype(np.int64)] = True
        sides = (2 * sides[long, None] + np.arange(2)).ravel()
        rounds += 1
    return met
