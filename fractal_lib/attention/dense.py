"""Attention to every row: the specification the others are tested against."""

from typing import Any

import torch
from torch import Tensor

from fractal_lib.attention.base import (
    ContextAttention,
    Reads,
    combine,
    normalise,
    pattern,
    position,
)
from fractal_lib.attention.kernels import Kernel, as_kernel
from fractal_lib.attention.pyramid import Pyramid
from fractal_lib.attention.tree import Tree
from fractal_lib.checks import as_float, require

__all__ = ["DenseAttention"]


@pattern("dense")
class DenseAttention(ContextAttention):
    """Every row, weighted by a kernel of its distance to t and normalised: Nadaraya-Watson
    attention.

    Args:
        kernel: any `Kernel`; the default is the original softmax of -(l (ts - t))^2.
        sample_weight: None, or (n,) floating point, finite, not negative and not all 0: how much
            each row counts before its distance does. Weights are kernel * sample_weight. It belongs
            to the rows and not to the query, so the result is as smooth in t as the kernel. Kept as
            a buffer, in the dtype it has, and in the state dict.

    Takes ``observed`` and ``times`` exactly. With several queries, a compiled loss that holds both
    a jvp in t and gradients of t is an error up to torch 2.13 (PyTorch issue 177261). Complexity:
    O(n H) per query. Positions are float64 whatever the rows are, where the original's float32
    rounds at large n. Source: Bartosh, Vetrov and Naesseth (2025); chapter
    ``start/dense_attention``; ``sample_weight``, chapter ``gallery/julia``.

    Raises:
        TypeError, ValueError: for a sample_weight that is not as said, or (when called) not one
            number a row.

    >>> values = torch.eye(3).unsqueeze(0)  # each row marks itself, so the result is the weights
    >>> DenseAttention()(values, torch.tensor([[0.5]]))
    tensor([[[0.0870, 0.8259, 0.0870]]])
    >>> DenseAttention(sample_weight=torch.tensor([1.0, 0.0, 3.0]))(values, torch.tensor([[0.5]]))
    tensor([[[0.2500, 0.0000, 0.7500]]])
    """

    sample_weight: Tensor | None
    takes_times = True
    takes_free_times = True

    def __init__(self, kernel: Kernel | None = None, *, sample_weight: Any = None):
        super().__init__()
        self.kernel = as_kernel(kernel)
        if sample_weight is not None:
            sample_weight = _checked(sample_weight)
        self.register_buffer("sample_weight", sample_weight)

    def prepare(self, values: Tensor, observed: Any = None, times: Any = None) -> Pyramid:
        """The rows with their mask and their exact times."""
        return Pyramid(values, observed, times, levels=1)

    def pattern(self, t: Tensor, tree: Tree) -> Reads:
        """All n rows for t (B, Q): (B, Q, n)."""
        x = position(t, tree.n).unsqueeze(-1)  # (B, Q, 1)
        every = torch.arange(tree.n, device=t.device).expand(*t.shape, -1)
        index, count = tree.lookup(0, every)
        if self.sample_weight is not None:
            if self.sample_weight.shape[0] != tree.n:
                raise ValueError(
                    f"sample_weight is for {self.sample_weight.shape[0]} rows, got {tree.n}"
                )
            count = count * self.sample_weight
        return Reads(index, normalise(self.kernel.log(x - tree.centroid(0, every), tree.n), count))

    @staticmethod
    def read(values: Tensor, reads: Reads) -> Tensor:
        """`read` where every row is read: a matrix product, not a gather of (B, Q, n, H)."""
        return combine(reads.weights, values)


def _checked(sample_weight: Any) -> Tensor:
    sample_weight = as_float(sample_weight, "sample_weight")
    if sample_weight.dim() != 1 or len(sample_weight) == 0:
        raise ValueError(
            f"sample_weight must have shape (n,), n >= 1, got {tuple(sample_weight.shape)}"
        )
    require(
        lambda: (sample_weight.isfinite() & (sample_weight >= 0)).all() & (sample_weight > 0).any(),
        "sample_weight must be finite, not negative and not all 0, got {0[0]} to {0[1]}",
        lambda: (sample_weight.min().item(), sample_weight.max().item()),
    )
    return sample_weight
