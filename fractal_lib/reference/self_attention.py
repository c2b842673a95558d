"""Self-attention, query by query: the specification of `fractal_lib.self_attention`."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fractal_lib.reference.keys_read import self_attention_groups, whole_reads

__all__ = ["self_attention", "self_attention_bound"]


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: int = 64,
    cells: int = 8,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    order: str = "time",
    chosen: Tensor | None = None,
) -> Tensor:
    """The specification of `fractal_lib.fractal_self_attention`, query by query.

    For each query: a list of what it reads, keys and cells; the mean key and the mean value of
    each; one dense softmax over all, in which a cell of c keys carries log(c). Which keys a cell
    holds is for `self_attention_groups` to say.

    Args:
        query, key: (B, heads, N, D); value: (B, heads, N, Dv); near, cells, scale, order: as there.
        causal: as ``is_causal`` there.
        key_padding_mask: None or (B, N) bool, True for padding.
        chosen: None or (B, heads, N, O) integers, the keys that each query opens (-1 for none):
            they are read one by one, and their cells stand for the keys that are left.

    Returns:
        (B, heads, N, Dv) float64, differentiable.

    Complexity: O(B heads N (near + cells log2(N / near))) operations of Python: for N of some
    hundreds. Source: chapter ``self_attention/near_in_content``.

    >>> q, k, v = torch.randn(3, 1, 1, 40, 4, dtype=torch.float64).unbind()
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> torch.allclose(self_attention(q, k, v, near=20, cells=4), exact)
    True
    """
    reads = _reads(query, key, value, near, cells, causal, key_padding_mask, scale, order, chosen)
    return torch.stack([read.out for read in reads]).unflatten(0, query.shape[:3])


def self_attention_bound(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: int = 64,
    cells: int = 8,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    order: str = "time",
    chosen: Tensor | None = None,
) -> Tensor:
    """The specification of ``return_bound``: how far each query's result can be from full
    attention, by what `fractal_lib.self_attention.certificate.error_bound` says.

    Args, complexity and source: as for `self_attention`; near must hold cells.

    >>> q, k, v = torch.randn(3, 1, 1, 40, 4, dtype=torch.float64).unbind()
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> error = (self_attention(q, k, v, near=4, cells=2) - exact).norm(dim=-1)
    >>> bool((error <= self_attention_bound(q, k, v, near=4, cells=2)).all())
    True
    """
    found = []
    arguments = (near, cells, causal, key_padding_mask, scale, order, chosen)
    for q, k, v, groups, opened, weights, out in _reads(query, key, value, *arguments):
        bound, farthest = torch.zeros((), dtype=torch.float64), out.new_zeros(())
        for group, weight in zip(groups, weights, strict=False):  # opened keys behind: exact
            rest = [j for j in group if j not in opened]
            keys, values = k[group], v[group]
            r = (keys - keys.mean(0)).norm(dim=1).max() * q.norm()
            rho = (values - values.mean(0)).norm(dim=1).max()
            away, most = (values.mean(0) - out).norm(), r
            if len(rest) < len(group):
                away, most = away + rho, 2 * r
            farthest = max(farthest, away + rho)
            delta = min(most, r**2 / 2)
            bound = bound + weight * (
                delta.exp() * 2 * rho * (r / 2).tanh() + (delta.exp() - 1) * away
            )
        found.append(min(bound, farthest))
    return torch.stack(found).unflatten(0, query.shape[:3])


class _Read(NamedTuple):
    """What one query reads: its scaled row, keys and values of its head; the groups of keys that it
    reads, whole; keys among them that it opens; weights of what is left of each group (0 if
    nothing is), then of opened keys; and the result.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    groups: list[list[int]]
    opened: list[int]
    weights: Tensor
    out: Tensor


def _reads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: int,
    cells: int,
    causal: bool,
    key_padding_mask: Tensor | None,
    scale: float | None,
    order: str,
    chosen: Tensor | None,
) -> Iterator[_Read]:
    """For each sample, head and query."""
    query, key, value = query.double(), key.double(), value.double()
    batch, heads, n, width = query.shape
    factor = width**-0.5 if scale is None else scale
    for b in range(batch):
        there = torch.ones(n, dtype=torch.bool)
        if key_padding_mask is not None:
            there = ~key_padding_mask[b]
        for h in range(heads):
            q, k, v = factor * query[b, h], key[b, h], value[b, h]
            tree = self_attention_groups(k.detach(), there, near, cells, order)
            for i in range(n):
                groups = [tree[read] for read in whole_reads(i, n, near, cells, causal)]
                groups = [group for group in groups if group]  # not what is all padding
                opened = [] if chosen is None else [j for j in chosen[b, h, i].tolist() if j >= 0]
                left = [[j for j in group if j not in opened] for group in groups]
                read = [rest for rest in left if rest] + [[j] for j in opened]
                weights = torch.zeros(len(groups) + len(opened), dtype=torch.float64)
                out = 0 * (q[i].sum() + k.sum() + v.sum(0))
                if read:
                    keys = torch.stack([k[rest].mean(0) for rest in read])
                    values = torch.stack([v[rest].mean(0) for rest in read])
                    counts = torch.tensor([len(rest) for rest in read], dtype=torch.float64)
                    share = (keys @ q[i] + counts.log()).softmax(0)
                    out = share @ values
                    places = [at for at, rest in enumerate(left + [[j] for j in opened]) if rest]
                    weights[places] = share.detach()
                yield _Read(q[i], k, v, groups, opened, weights, out)
