"""Next-byte prediction on Python's documentation: the same small transformer with three kinds of
attention.

    python benchmarks/text_task.py --json benchmarks/results/text-task.json

Full attention, a window, and near and far keys by cells, for equal steps; the time is recorded too,
with the held-out loss on the way, so that equal times can be compared as well.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from fractal_lib import fractal_self_attention
from fractal_lib.benchmark.machine import describe, load_average
from fractal_lib.data.text import byte_batch, docstrings

ATTENTIONS = {
    "full": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
    "window": lambda q, k, v: fractal_self_attention(q, k, v, near=32, cells=0, is_causal=True),
    "near and far": lambda q, k, v: fractal_self_attention(
        q, k, v, near=32, cells=8, is_causal=True
    ),
}


class Block(nn.Module):
    """Attention and a two-layer network, each behind a norm and beside a shortcut."""

    def __init__(self, width, heads, attend):
        super().__init__()
        self.heads, self.attend = heads, attend
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.mix(self.norms[0](x)).chunk(3, -1)
        )
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.net(self.norms[1](x))


class Bytes(nn.Module):
    """A transformer over bytes: (B, N) int64 to logits (B, N, 256)."""

    def __init__(self, attend, length, width=128, heads=4, layers=3):
        super().__init__()
        self.look, self.place = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, attend) for _ in range(layers)))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, x):
        return self.out(self.blocks(self.look(x) + self.place.weight[: x.shape[1]]))


def bits(model, rows):
    """Bits a byte, for the prediction of every byte from those before it."""
    return cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()) / torch.log(
        torch.tensor(2.0)
    )


def run(name, seed, length, steps, batch):
    text = docstrings()
    learnt, held = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    test = byte_batch(held, 24, length + 1, torch.Generator().manual_seed(99))
    torch.manual_seed(seed)
    model = Bytes(ATTENTIONS[name], length)
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, steps)
    generator, curve = torch.Generator().manual_seed(seed), []
    wall = cpu = 0.0
    for step in range(1, steps + 1):
        begun = time.perf_counter(), time.process_time()
        adam.zero_grad()
        bits(model, byte_batch(learnt, batch, length + 1, generator)).backward()
        adam.step()
        schedule.step()
        wall, cpu = wall + time.perf_counter() - begun[0], cpu + time.process_time() - begun[1]
        if step % 50 == 0 or step == steps:
            with torch.no_grad():
                curve.append((step, round(cpu, 1), round(bits(model, test).item(), 4)))
    return dict(
        attention=name,
        seed=seed,
        bits=curve[-1][2],
        curve=curve,
        cpu_s=round(cpu, 1),
        wall_s=round(wall, 1),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    record = (
        describe("cpu", 1)
        | {k: getattr(settings, k) for k in ("length", "steps", "batch")}
        | {"runs": []}
    )
    for seed in settings.seeds:
        for name in ATTENTIONS:
            record["runs"].append(run(name, seed, settings.length, settings.steps, settings.batch))
            print({k: v for k, v in record["runs"][-1].items() if k != "curve"}, flush=True)
            if settings.json:
                settings.json.write_text(
                    json.dumps(record | {"load_average_after": load_average()}, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
