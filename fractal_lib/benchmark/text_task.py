"""Next-byte prediction on Python's documentation: the same small transformer with three kinds of
attention.

Full attention, a window, and near and far keys by cells, for equal steps; the time is recorded too,
with the held-out loss on the way, so that equal times can be compared as well.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Clock
from fractal_lib.data.text import byte_batch, docstrings
from fractal_lib.progress import progress_bar
from fractal_lib.self_attention import fractal_self_attention

__all__ = ["ATTENTIONS", "Bytes", "bits", "text_task"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
ATTENTIONS: dict[str, Attend] = {
    "full": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
    "window": lambda q, k, v: fractal_self_attention(q, k, v, near=32, cells=0, is_causal=True),
    "near and far": lambda q, k, v: fractal_self_attention(
        q, k, v, near=32, cells=8, is_causal=True
    ),
}


class Block(nn.Module):
    """Attention and a two-layer network, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, attend: Attend):
        super().__init__()
        self.heads, self.attend = heads, attend
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.mix(self.norms[0](x)).chunk(3, -1)
        )
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.net(self.norms[1](x))


class Bytes(nn.Module):
    """A transformer over bytes: (B, N) int64 to logits (B, N, 256)."""

    def __init__(
        self, attend: Attend, length: int, width: int = 128, heads: int = 4, layers: int = 3
    ):
        super().__init__()
        self.embed, self.place = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, attend) for _ in range(layers)))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every next byte."""
        return self.out(self.blocks(self.embed(x) + self.place.weight[: x.shape[1]]))


def bits(model: nn.Module, rows: Tensor) -> Tensor:
    """Bits a byte, for the prediction of every byte of (B, N) from those before it."""
    loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    return loss / torch.log(torch.tensor(2.0))


@case("text-task", records="text-task", choices={"only": list(ATTENTIONS)})
def text_task(
    seeds: Sequence[int] = (0, 1),
    length: int = 1024,
    steps: int = 400,
    batch: int = 4,
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Predict the next byte of Python's documentation by three kinds of self-attention.

    Args:
        seeds: of the start and of the training.
        length: bytes in a stretch.
        steps: of training, for every attention the same.
        batch: stretches in a step.
        only: these attentions alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``runs`` so far: held-out ``bits`` a byte, their ``curve`` of (step, CPU seconds, bits),
        seconds by the wall and CPU seconds.

    Source: chapter ``attention/self_attention``.
    """
    positive(length=length, steps=steps, batch=batch)
    runs, todo = [], [(seed, name) for seed in seeds for name in only or ATTENTIONS]
    with progress_bar(len(todo) * steps, "text-task", progress) as step:
        for seed, name in todo:
            run = {"attention": name, "seed": seed}
            run |= _train(ATTENTIONS[name], seed, length, steps, batch, partial(step, name))
            print({k: v for k, v in run.items() if k != "curve"}, flush=True)
            runs.append(run)
            yield {"length": length, "steps": steps, "batch": batch, "runs": runs}


def _train(
    attend: Attend, seed: int, length: int, steps: int, batch: int, step: Callable[[], object]
) -> dict:
    text = docstrings()
    train, rest = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    test = byte_batch(rest, 24, length + 1, torch.Generator().manual_seed(99))
    torch.manual_seed(seed)
    model = Bytes(attend, length)
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, steps)
    generator, curve, clock = torch.Generator().manual_seed(seed), [], Clock()
    for done in range(1, steps + 1):
        with clock:
            adam.zero_grad()
            bits(model, byte_batch(train, batch, length + 1, generator)).backward()
            adam.step()
            schedule.step()
        if done % 50 == 0 or done == steps:
            with torch.no_grad():
                held_out = round(bits(model, test).item(), 4)
            curve.append((done, round(clock.cpu, 1), held_out))
        step()
    return {"bits": curve[-1][2], "curve": curve} | clock.taken(1)
