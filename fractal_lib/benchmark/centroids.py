"""The mark for cells: each block's far keys by the centroids of k-means, wherever they stand."""

import torch
from torch import Tensor

from fractal_lib.checks import optional

__all__ = ["centroids"]


def centroids(q: Tensor, k: Tensor, v: Tensor, near: int = 64, count: int = 96) -> Tensor:
    """Causal attention that reads near keys as `fractal_self_attention` does, and all far ones by
    ``count`` centroids; no order of the keys limits which may share one.

    Far keys are clustered anew for every block of queries, over what is past for it. So nothing
    leaks, and it costs far too much to be of use: it says how good cells of any shape could be.

    Args:
        q, k, v: (B, heads, N, D), (B, heads, N, D) and (B, heads, N, Dv).
        near: positions in a block.
        count: centroids, at most one for each far key.

    Complexity: k-means on N / near prefixes of each head: O(N^2 count D / near) an iteration.
    Source: Lloyd (1982), by scikit-learn.

    >>> q, k, v = torch.randn(3, 1, 1, 12, 4, dtype=torch.float64)
    >>> full = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> torch.allclose(centroids(q, k, v, near=2, count=12), full)
    True
    """
    q, k, v, shape = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), q.shape[:2]
    out = [_head(q[i], k[i], v[i], near, count) for i in range(len(q))]
    return torch.stack(out).unflatten(0, shape)


def _head(q: Tensor, k: Tensor, v: Tensor, near: int, count: int) -> Tensor:
    n, out = len(q), []
    for start in range(0, n, near):
        rows, first = q[start : start + near] / q.shape[1] ** 0.5, max(0, start - near)
        place = torch.arange(start, start + len(rows))[:, None]
        own = rows @ k[first : start + near].T  # (rows, keys)
        logits = own.masked_fill(torch.arange(first, first + own.shape[1]) > place, -torch.inf)
        values = v[first : start + near]
        if first:
            mean, value, size = _cells(k[:first], v[:first], count)
            logits = torch.cat([logits, rows @ mean.T + size.log()], 1)
            values = torch.cat([values, value])
        out.append(logits.softmax(-1) @ values)
    return torch.cat(out)


def _cells(k: Tensor, v: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean key, mean value and size of every cluster that has a key."""
    cluster = optional("sklearn.cluster", "centroids()")
    # keys that are equal leave clusters empty
    count = min(count, len(k.unique(dim=0)))
    means = cluster.KMeans(count, n_init=1, random_state=0)
    label = torch.from_numpy(means.fit_predict(k.double().numpy())).long()
    member = torch.nn.functional.one_hot(label, count).to(k.dtype)  # (keys, count)
    member = member[:, member.any(0)]
    size = member.sum(0)
    mean, value = ((member.T @ x) / size[:, None] for x in (k, v))
    return mean, value, size
