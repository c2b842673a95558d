"""The dragon's creases: a few rows of every fold around t, no row on two of them (chapter
``gallery/dragon``).
"""

import torch
from torch import Tensor, nn

from fractal_lib.attention.base import ContextAttention, Reads, average, pattern, position
from fractal_lib.attention.fractal import MAX_LEVELS
from fractal_lib.attention.tree import Tree, all_levels, strides
from fractal_lib.checks import as_int
from fractal_lib.curves.splines import bspline_weights, stencil

__all__ = ["DragonCurveAttention"]


@pattern("dragon", signed={"signed": True})
class DragonCurveAttention(ContextAttention):
    """Read a context at O(log n) places, the creases of a folded strip: each row belongs to one
    fold and no other.

    Row i - 1 carries crease i = (2j + 1) 2^k of level k. The levels are grids of stride 2^(k+1)
    that partition the rows. Of each, the four creases nearest t are read under a cubic B-spline,
    every level with a learnable share.

    *Unsigned*: a weighted mean, C^2 in t. *Signed*: crease j of a level turns left for even j and
    right for odd j, and the result is the mean of the left creases minus the mean of the right
    ones, each over all levels. It is 0 on constant rows, and in a context of one or two rows, where
    nothing turns right.

    Args:
        max_depth: number of levels, 1 to 32; default all that n has, floor(log2 n) + 1.
        signed: False for a mean, True for the contrast of left and right.

    Attributes:
        level_logits: (max_depth or 32,) float32 parameter, logits of the levels' shares.

    Takes ``observed``: a gap that leaves no crease, or (signed) none of one turn, within reach is
    an error. Complexity: 4 (floor(log2 n) + 1) reads of H numbers per query.

    Raises:
        ValueError: if ``max_depth`` is outside [1, 32].

    Source: Davis and Knuth (1970) for levels and turns; chapter ``gallery/dragon``.

    >>> values = torch.arange(8.0).reshape(1, 8, 1)
    >>> t = torch.tensor([[0.0, 0.5, 1.0]])
    >>> DragonCurveAttention()(values, t).shape
    torch.Size([1, 3, 1])
    >>> DragonCurveAttention(signed=True)(torch.ones(1, 8, 1), t).abs().max() < 1e-6
    tensor(True)
    """

    def __init__(self, max_depth: int | None = None, *, signed: bool = False):
        super().__init__()
        depth = MAX_LEVELS if max_depth is None else as_int(max_depth, "max_depth", 1, MAX_LEVELS)
        self.signed, self.kind = signed, "contrast" if signed else "mean"
        self.reach = "near" if signed else "all"
        self.level_logits = nn.Parameter(torch.empty(depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal shares."""
        nn.init.zeros_(self.level_logits)

    def extra_repr(self) -> str:
        """Depth and kind."""
        return f"max_depth={len(self.level_logits)}, signed={self.signed}"

    def levels(self, n: int) -> int:
        """Number of levels read in a context of n rows: those with 2^k <= n, ``max_depth`` of them
        at most.
        """
        return min(all_levels(n + 1) - 1, self.level_logits.shape[0])

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """Where to read for t (B, Q): (B, Q, 4 L).

        The weights of a query sum to 1. Signed, the positive ones (left) do and the negative ones
        sum to -1.
        """
        first = strides(self.levels(tree.n), t.device)  # (L,): the first crease of level k is 2^k
        # (B, Q, L, 4)
        crease, fraction = stencil(position(t, tree.n).unsqueeze(-1) + (1 - first), 2 * first)
        row = (2 * crease + 1) * first.unsqueeze(-1) - 1
        index, count = tree.lookup(0, row.flatten(-2))
        share = self.level_logits[: first.shape[0]].double().softmax(0).unsqueeze(-1)  # (L, 1)
        weight = (share * bspline_weights(fraction)).flatten(-2) * count
        if not self.signed:
            return Reads(index, average(weight))
        if tree.n < 3:  # the first crease that turns right is on row 2
            return Reads(index, 0 * weight)
        # Neither side is empty when every row is there. In strides of level 0, t stands at u in [0,
        # (n - 1) / 2] and the right creases are 1, 3, 5, ... up to (n - 1) / 2. The first is at
        # most 1 from u = 0, neighbours are 2 apart, and the last is less than 2 from the end, or
        # there would be another: strictly within the B-spline's reach, which is 2. The left creases
        # are 0, 2, 4, ..., and the same holds.
        left = (crease % 2 == 0).flatten(-2)
        return Reads(index, average(weight * left) - average(weight * ~left))
