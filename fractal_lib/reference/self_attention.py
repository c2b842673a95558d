"""Self-attention, query by query: the specification of `fractal_lib.self_attention`."""

import torch
from torch import Tensor

__all__ = ["self_attention", "self_attention_reads"]


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: int = 64,
    cells: int = 8,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    chosen: Tensor | None = None,
) -> Tensor:
    """The specification of `fractal_lib.fractal_self_attention`, query by query.

    For each query: a list of what it reads, keys and cells; the mean key and the mean value of
    each; one dense softmax over all, in which a cell of c keys carries log(c).

    Args:
        query, key: (B, heads, N, D); value: (B, heads, N, Dv); near, cells, scale: as there.
        causal: as ``is_causal`` there.
        key_padding_mask: None or (B, N) bool, True for padding.
        chosen: None or (B, heads, N, O) integers, the keys that each query opens (-1 for none):
            they are read one by one, and their cells stand for the keys that are left.

    Returns:
        (B, heads, N, Dv) float64, differentiable.

    Complexity: O(B heads N (near + cells log2(N / near))) operations of Python: for N of some
    hundreds. Source: chapter ``attention/self_attention``.

    >>> q, k, v = torch.randn(3, 1, 1, 40, 4, dtype=torch.float64).unbind()
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> torch.allclose(self_attention(q, k, v, near=20, cells=4), exact)
    True
    """
    query, key, value = query.double(), key.double(), value.double()
    batch, heads, n, width = query.shape
    factor = width**-0.5 if scale is None else scale
    everything = []
    for b in range(batch):
        there = torch.ones(n, dtype=torch.bool)
        if key_padding_mask is not None:
            there = ~key_padding_mask[b]
        for h in range(heads):
            q, k, v = query[b, h], key[b, h], value[b, h]
            for i in range(n):
                reads = self_attention_reads(i, n, near, cells, causal)
                groups = [torch.arange(start, stop)[there[start:stop]] for start, stop in reads]
                if chosen is not None:
                    picked = chosen[b, h, i][chosen[b, h, i] >= 0]
                    groups = [group[~torch.isin(group, picked)] for group in groups]
                    groups += picked[:, None]
                groups = [group for group in groups if len(group)]  # padding alone, or all opened
                if not groups:
                    everything.append(0 * (q[i].sum() + k.sum() + v.sum(0)))
                    continue
                keys = torch.stack([k[group].mean(0) for group in groups])
                values = torch.stack([v[group].mean(0) for group in groups])
                counts = torch.tensor([len(group) for group in groups], dtype=torch.float64)
                weights = (factor * keys @ q[i] + counts.log()).softmax(0)
                everything.append(weights @ values)
    return torch.stack(everything).unflatten(0, (batch, heads, n))


def self_attention_reads(
    i: int, n: int, near: int, cells: int, causal: bool = False
) -> list[tuple[int, int]]:
    """What query i of n reads, as (start, stop) of keys: from the top of a binary tree down.

    A node of level l is ``near * 2**l`` keys wide. One that is not beside the query's own node of
    its level is read, as ``cells`` cells; else its two halves are looked at, and at level 0 its
    keys are read one by one. Without cells, far nodes are not read at all. When causal, what
    reaches beyond i is left out.

    >>> self_attention_reads(0, n=12, near=2, cells=1)
    [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 8), (8, 12)]
    """
    found = []

    def visit(level: int, index: int) -> None:
        width = near * 2**level
        start = index * width
        if start >= n:
            return
        if abs(index - i // width) > 1:  # far away
            if cells:
                cell = width // cells
                found.extend((at, at + cell) for at in range(start, start + width, cell))
        elif level:
            visit(level - 1, 2 * index)
            visit(level - 1, 2 * index + 1)
        else:
            found.extend((at, at + 1) for at in range(start, start + width))

    visit((n - 1).bit_length(), 0)
    found = [(start, min(stop, n)) for start, stop in found if start < n]
    return [(start, stop) for start, stop in found if not causal or stop <= i + 1]
