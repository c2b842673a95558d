"""Products over all rows: what the sketch wrote, what it meant, and what it should be measured
against. Rows (B, n, H) and one t (B, 1) per sample, the original kernel.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["dense_bmm", "sdpa_with_bias", "sketch", "sketch_fixed"]


def sketch(rows: Tensor, t: Tensor) -> Tensor:
    """The original as the sketch's benchmark wrote it: rows (B, n, H), t (B, 1) to (B, n, H).

    Word for word. ``t.unsqueeze(-1)`` makes its weights (B, 1, n), so the product has B B n H
    numbers and the sum runs over the batch: B times the work, and the shape tells that it is not
    the result.

    >>> sketch(torch.randn(4, 10, 2), torch.rand(4, 1)).shape
    torch.Size([4, 10, 2])
    """
    seq_len = rows.shape[1]
    ts = torch.linspace(0, 1, seq_len, device=rows.device)
    distances = (ts.unsqueeze(0) - t.unsqueeze(-1)) ** 2
    attention = torch.softmax(-distances * seq_len, dim=-1)
    return (rows * attention.unsqueeze(-1)).sum(dim=1)


def sketch_fixed(rows: Tensor, t: Tensor) -> Tensor:
    """What the sketch meant, its shapes fixed: rows (B, n, H), t (B, 1) to (B, H).

    Its kernel is still not the original one (n multiplies the square and not the distance, so it is
    about sqrt(n) times wider), and multiply-and-sum still writes a second copy of the context.

    >>> sketch_fixed(torch.randn(4, 10, 2), torch.rand(4, 1)).shape
    torch.Size([4, 2])
    """
    seq_len = rows.shape[1]
    ts = torch.linspace(0, 1, seq_len, device=rows.device)
    distances = (ts.unsqueeze(0) - t) ** 2  # (B, n)
    attention = torch.softmax(-distances * seq_len, dim=-1)
    return (rows * attention.unsqueeze(-1)).sum(dim=1)


def dense_bmm(rows: Tensor, t: Tensor) -> Tensor:
    """The original kernel in float32 and one batched matrix product: (B, n, H), (B, 1) to (B, H).

    >>> dense_bmm(torch.eye(3).unsqueeze(0), torch.tensor([[0.5]]))
    tensor([[0.0870, 0.8259, 0.0870]])
    """
    l = rows.shape[1]
    ts = torch.linspace(0, 1, l, device=rows.device)
    c = torch.softmax(-((l * (ts - t)) ** 2), dim=1)  # (B, n)
    return torch.bmm(c.unsqueeze(1).to(rows.dtype), rows).squeeze(1)


def sdpa_with_bias(rows: Tensor, t: Tensor) -> Tensor:
    """The original kernel as the bias of PyTorch's own attention, whose queries and keys are 0.

    >>> sdpa_with_bias(torch.eye(3).unsqueeze(0), torch.tensor([[0.5]]))
    tensor([[0.0870, 0.8259, 0.0870]])
    """
    l = rows.shape[1]
    ts = torch.linspace(0, 1, l, device=rows.device)
    bias = -((l * (ts - t)) ** 2)  # (B, n)
    keys = torch.zeros((), dtype=rows.dtype, device=rows.device).expand(rows.shape[0], 1, l, 8)
    mask = bias.to(rows.dtype)[:, None, None]  # (B, 1, 1, n)
    return scaled_dot_product_attention(keys[:, :, :1], keys, rows.unsqueeze(1), mask)[:, 0, 0]
