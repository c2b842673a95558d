"""The pyramids of many series in one tensor, and the four nodes around a place on every level."""

from typing import NamedTuple

import torch
from torch import Tensor

from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree, node_stencil, strides

__all__ = ["Nodes", "PackedPyramids"]


class Nodes(NamedTuple):
    """Four nodes on each of L levels.

    Attributes:
        fraction: (B, Q, L) float64, of a node's width past the second of the four.
        values: (B, Q, L, 4, X), means of their observed rows.
        full: (B, Q, L, 4) float64, rows that each would hold; 0 outside the series.
        there: (B, Q, L, 4) float64, rows observed.
    """

    fraction: Tensor
    values: Tensor
    full: Tensor
    there: Tensor


class PackedPyramids:
    """Pyramids of S series, one after another.

    Args:
        values: (S, N, X), 0 where nothing was observed.
        observed: (S, N) bool, or None for all.
        times: (S, N) in [0, 1], or None for an even grid.
        n: rows of the grid, or bins of level 0.
        levels: number of levels.

    Attributes:
        tree: the `Tree` of a complete series of n rows.
        stride: (L,) int64.

    Complexity: O(S N X) once, O(X) a node.
    """

    def __init__(
        self, values: Tensor, observed: Tensor | None, times: Tensor | None, n: int, levels: int
    ):
        bins = None if times is None else n
        pyramid = Pyramid(values, observed, times, bins=bins, levels=levels)
        self.tree = Tree(n, levels)  # as if complete: what is missing is the difference
        self.stride = strides(levels, values.device)
        self.values, self.packed = pyramid.values.flatten(0, 1), pyramid.values.shape[1]  # (S P, X)
        counts = pyramid.tree.counts
        # (S P,), or None if every row is there
        self.counts = None if counts is None else counts.expand(len(values), -1).flatten()

    def around(self, series: Tensor, x: Tensor, causal: bool = False, lag: float = 0.0) -> Nodes:
        """The nodes around places x (B, Q), in rows, or the last that have ended there, see
        `node_stencil`.
        """
        levels = len(self.stride)
        # (B, Q, L, 4), (B, Q, L)
        node, fraction = node_stencil(x, self.stride, causal=causal, lag=lag)
        index, full = self.tree.lookup(self._level(node), node.flatten(-2))  # (B, Q, 4 L)
        index = index + (series * self.packed)[:, None, None]
        full = full.view_as(node)
        there = full
        if self.counts is not None:  # the nearest node stands in for one outside
            there = self.counts[index].view_as(node) * (full > 0)
        values = self.values[index].unflatten(-2, (levels, 4))
        return Nodes(fraction, values, full, there)

    def _level(self, node: Tensor) -> Tensor:
        """Of each node (..., L, 4), flat."""
        return torch.arange(node.shape[-2], device=node.device).repeat_interleave(4)
