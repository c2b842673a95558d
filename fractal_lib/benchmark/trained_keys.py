"""Queries, keys and values of a transformer trained here, and how well each way of reading far keys
does on them.

Random keys flatter nobody and smooth keys flatter cells. These are keys that training made, on the
documentation that every Python brings along.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fractal_lib.benchmark.attentions import WAYS, rows_of
from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Clock
from fractal_lib.benchmark.transformer import Shifted, Transformer, causal, fit
from fractal_lib.data.text import byte_batch, docstrings
from fractal_lib.progress import progress_bar

__all__ = ["PLACES", "bits", "byte_model", "table_bits", "train_bytes", "trained_keys"]

HEADS, LAYERS, HELD_OUT = 4, 2, 16
PLACES = ("rotary", "convolution")
"""How the model knows places: by `turned` queries and keys, which mixes the place into the content;
or by a convolution over four bytes where they enter, which leaves keys to content alone.
"""


def bits(model: nn.Module, rows: Tensor) -> Tensor:
    """Bits a byte, for the prediction of every byte of (B, N) from those before it."""
    loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    return loss / torch.log(torch.tensor(2.0))


def table_bits(train: bytes, test: bytes, context: int) -> float:
    """Bits a byte of a table that counts which byte follows the last ``context`` bytes; a shorter
    context stands in with the weight of five counts, the best of 1, 3, 5 and 10 on this text or
    within .02 of it.

    >>> [round(table_bits(b"ab" * 5000, b"ab" * 500, context), 2) for context in (0, 1)]
    [1.0, 0.0]
    """
    seen, asked = (np.frombuffer(text, np.uint8).astype(np.int64) for text in (train, test))
    guess = np.full(len(asked), 1 / 256)
    for length in range(context + 1):
        codes = [
            sum(x[length - j : len(x) - j] << 8 * j for j in range(length + 1))
            for x in (seen, asked)
        ]
        pairs = np.bincount(codes[0], minlength=256 ** (length + 1))
        runs = pairs.reshape(-1, 256).sum(1)
        guess[length:] = (pairs[codes[1]] + 5 * guess[length:]) / (runs[codes[1] >> 8] + 5)
    return float(-np.log2(guess).mean())


def byte_model(places: str) -> Transformer:
    """Two layers of four heads of 32 numbers, over bytes; ``places`` is one of `PLACES`."""
    width, rotary = 32 * HEADS, places == "rotary"
    enter = nn.Embedding(256, width) if rotary else Shifted(256, width, back=3)
    return Transformer(causal, enter, 256, width, HEADS, LAYERS, rotary)


def train_bytes(
    train: bytes,
    test: Tensor,
    length: int,
    steps: Sequence[int],
    seed: int,
    places: str,
    step: Callable[[], object] = lambda: None,
) -> tuple[Transformer, dict]:
    """A byte transformer, trained on stretches that grow: (model, its ``curve`` of (step, CPU
    seconds, held-out bits a byte), and the seconds it took).

    Args:
        train: the text.
        test: held-out stretches, (B, length + 1).
        length: of the longest stretches; the first are a sixteenth of it, then a quarter.
        steps: of each of the three.
        seed: of the start and of the stretches.
        places: one of `PLACES`.
        step: called after each.
    """
    torch.manual_seed(seed)
    model = byte_model(places)
    lengths = [max(1, length // 16), max(1, length // 4), length]
    stage = [i for i, count in enumerate(steps) for _ in range(count)]
    generator, curve = torch.Generator().manual_seed(seed), []

    def loss(done: int) -> Tensor:
        i = stage[done]
        return bits(model, byte_batch(train, (16, 8, 2)[i], lengths[i] + 1, generator))

    def after(done: int, clock: Clock) -> None:
        if done % 500 == 0 or done == len(stage):
            with torch.no_grad():
                held_out = round(bits(model, test).item(), 4)
            curve.append([done, round(clock.cpu, 1), held_out])
            print(f"step {done}: {held_out} bits a byte after {clock.cpu:.0f} s", flush=True)
        step()

    clock = fit(model, loss, len(stage), 2e-3, after)
    return model, {"bits": curve[-1][2], "curve": curve} | clock.taken(1)


@case("trained-keys", records="trained-keys-*", choices={"places": PLACES, "only": WAYS})
def trained_keys(
    places: str = "rotary",
    length: int = 1024,
    near: int = 64,
    cells: int = 16,
    centroids: int = 96,
    texts: int = 4,
    steps: Sequence[int] = (2000, 800, 200),
    seed: int = 0,
    checkpoint: Path | None = None,
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Train a byte transformer, and tell the error of every way to read its far keys, head by head.

    Args:
        places: how the model knows them.
        length: bytes in a stretch, n.
        near, cells: of `fractal_self_attention`.
        centroids: of k-means over all far keys, the mark.
        texts: held-out stretches that the errors are taken over.
        steps: of training, on stretches of a sixteenth of the length, a quarter, and all of it.
        seed: of the start and of the training.
        checkpoint: file that keeps what was trained, and goes on from it.
        only: these ways and rivals alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        held-out ``bits`` a byte, their ``curve`` of (step, CPU seconds, bits), the bits of a
        ``bigram`` and a ``trigram`` table on the same text, and ``rows``, one for each head and
        method, as `rows_of` makes them.

    Source: chapter ``self_attention/near_in_content``.
    """
    positive(length=length, texts=texts, centroids=centroids)
    text = docstrings()
    train, rest = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    test = byte_batch(rest, max(texts, HELD_OUT), length + 1, torch.Generator().manual_seed(99))
    with progress_bar(sum(steps), "trained-keys", progress) as step:
        if checkpoint is not None and checkpoint.exists():
            kept = torch.load(checkpoint)
            model, told = byte_model(places), kept["told"]
            model.load_state_dict(kept["model"])
        else:
            model, told = train_bytes(train, test, length, steps, seed, places, partial(step, ""))
            if checkpoint is not None:
                torch.save({"model": model.state_dict(), "told": told}, checkpoint)
    told |= {"bigram": table_bits(train, rest, 1), "trigram": table_bits(train, rest, 2)}
    print({name: value for name, value in told.items() if name != "curve"}, flush=True)
    rows, qkv = [], model.qkv(test[:texts, :-1]).double()
    for layer in range(LAYERS):
        for head in range(HEADS):
            q, k, v = qkv[:, layer, :, head : head + 1]  # (B, 1, N, D)
            made = rows_of(q, k, v, near, cells, centroids, only)
            rows += [{"name": places, "head": f"layer {layer}, head {head}"} | row for row in made]
            yield told | {"rows": rows}
