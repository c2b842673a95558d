"""The small transformer of the attention tasks, with any attention in it, and how it is trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from fractal_lib.benchmark.timer import Clock

__all__ = ["Attend", "Block", "Shifted", "Transformer", "causal", "fit", "turned"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k and v, each (B, heads, N, D), to (B, heads, N, D)."""


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention to what is past."""
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def turned(x: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021) of (..., N, D), D even: pair j of row i is turned by
    i / 10000^(2 j / D), so that a logit knows how far apart its rows are.

    >>> q, k = turned(torch.ones(9, 4)), turned(torch.ones(9, 4))
    >>> torch.allclose(q[5] @ k[3], q[8] @ k[6])
    True
    """
    n, width = x.shape[-2:]
    rate = 10_000 ** (-torch.arange(0, width, 2, device=x.device) / width)
    angle = torch.arange(n, device=x.device)[:, None] * rate  # (N, D / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)


class Shifted(nn.Module):
    """Each place tells what stands there and what stood at the ``back`` places before it, (B, N)
    int64 to (B, N, width): a short causal convolution, as recall is tested with.

    >>> Shifted(5, 8, back=2)(torch.zeros(3, 1, dtype=torch.long)).shape
    torch.Size([3, 1, 8])
    """

    def __init__(self, vocabulary: int, width: int, back: int = 1):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(vocabulary, width) for _ in range(back + 1))
        for table in self.tables.parameters():
            nn.init.normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the embeddings; 0 stands before the first place."""
        shifted = (table(pad(x, (i, 0))[:, : x.shape[1]]) for i, table in enumerate(self.tables))
        return torch.stack(list(shifted)).sum(0)


class Block(nn.Module):
    """Attention and a two-layer network, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, attend: Attend, rotary: bool = True):
        super().__init__()
        self.heads, self.attend, self.rotary = heads, attend, rotary
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, width) to queries and keys, `turned` if rotary, and values: (B, heads, N, D)."""
        parts = self.mix(self.norms[0](x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return (turned(q), turned(k), v) if self.rotary else (q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same."""
        x = x + self.out(self.attend(*self.qkv(x)).transpose(1, 2).flatten(2))
        return x + self.net(self.norms[1](x))


class Transformer(nn.Module):
    """Blocks between an entrance and an exit.

    Args:
        attend: the attention of every block.
        enter: what comes in, to (B, N, width).
        size: numbers that leave at every place.
        width, heads, layers: of the blocks.
        rotary: whether queries and keys are `turned`; nothing else tells a block about places.

    >>> model = Transformer(causal, nn.Embedding(5, 16), 3, width=16, heads=2, layers=1)
    >>> model(torch.zeros(2, 7, dtype=torch.long)).shape
    torch.Size([2, 7, 3])
    """

    def __init__(
        self,
        attend: Attend,
        enter: nn.Module,
        size: int,
        width: int,
        heads: int,
        layers: int,
        rotary: bool = True,
    ):
        super().__init__()
        self.enter = enter
        self.blocks = nn.ModuleList(Block(width, heads, attend, rotary) for _ in range(layers))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        if isinstance(enter, nn.Embedding):
            nn.init.normal_(enter.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """What enters, to (B, N, size)."""
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x)

    @torch.no_grad()
    def qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values of every block: (3, layers, B, heads, N, D)."""
        x, found = self.enter(x), []
        for block in self.blocks:
            assert isinstance(block, Block)
            found.append(torch.stack(block.qkv(x)))
            x = block(x)
        return torch.stack(found, 1)


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    after: Callable[[int, Clock], object] = lambda done, clock: None,
) -> Clock:
    """Minimise by AdamW with a warm-up, a cosine and clipped gradients; the seconds it took.

    Args:
        model: whose parameters are trained; matrices decay by 0.1.
        loss: of the step with this number, the first being 0.
        steps, lr: their number, and the largest rate.
        after: called outside the clock with the steps that are done.

    >>> line = nn.Linear(1, 1)
    >>> clock = fit(line, lambda step: (line(torch.ones(1, 1)) - 3).square().sum(), 200, lr=0.1)
    >>> abs(line(torch.ones(1, 1)).item() - 3) < 0.1
    True
    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr, betas=(0.9, 0.98))
    rates = torch.optim.lr_scheduler.OneCycleLR(
        adam, lr, max(2, steps), pct_start=0.05, cycle_momentum=False
    )
    clock = Clock()
    for step in range(steps):
        with clock:
            adam.zero_grad()
            loss(step).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            rates.step()
        after(step + 1, clock)
    return clock
