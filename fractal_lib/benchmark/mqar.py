"""Multi-query associative recall with every attention: the same small model, the same steps."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fractal_lib.benchmark.attentions import FAR, WINDOWS, trained
from fractal_lib.benchmark.machine import positive
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.transformer import Shifted, Transformer, fit
from fractal_lib.data.recall import recall
from fractal_lib.progress import progress_bar

__all__ = ["ATTENTIONS", "mqar"]

ATTENTIONS = ("full", *WINDOWS, *FAR)


@case("mqar", records="mqar", choices={"only": ATTENTIONS})
def mqar(
    lengths: Sequence[int] = (64, 128, 256),
    pairs: Sequence[int] = (4, 8, 16),
    vocabulary: int = 64,
    width: int = 64,
    heads: int = 2,
    near: int = 16,
    cells: int = 4,
    steps: int = 150,
    tokens: int = 2048,
    seeds: Sequence[int] = (0, 1),
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[dict]:
    """Recall the values of keys that were seen once, by a small model with every kind of attention.

    Args:
        lengths, pairs: of the sequences, in the order in which they are trained and asked.
        vocabulary: how many different numbers there are; half are keys.
        width, heads: of the model, of two layers with rotary positions; what stands at a place
            enters with what stood before it, so that one layer suffices.
        near, cells: of `fractal_self_attention`, causal; the window reads as many keys.
        steps: of training with each length, for every attention the same.
        tokens: numbers in a step, whatever the length.
        seeds: of the start and of the sequences.
        only: these attentions alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Yields:
        ``runs``, one for each attention and seed: the share of right answers (``accuracy``) on new
        sequences of each length, the same for keys that come again more than 2 ``near`` later
        (``far``), seconds by the wall and CPU seconds.

    Source: Arora et al., Zoology (2023); chapter ``self_attention/opening``.
    """
    positive(lengths=lengths, pairs=pairs, steps=steps, tokens=tokens)
    runs, todo = [], [(seed, name) for seed in seeds for name in only or ATTENTIONS]
    sizes = list(zip(lengths, pairs, strict=True))
    with progress_bar(len(todo) * steps * len(sizes), "mqar", progress) as step:
        for seed, name in todo:
            torch.manual_seed(seed)
            attend = trained(near, cells)[name]
            model = Transformer(attend, Shifted(vocabulary, width), vocabulary, width, heads, 2)
            run = {"attention": name, "seed": seed}
            run |= _train(model, sizes, vocabulary, steps, tokens, seed, partial(step, name))
            run |= _asked(model, sizes, vocabulary, 2 * near)
            print(run, flush=True)
            runs.append(run)
            yield {"runs": runs}


def _train(
    model: nn.Module,
    sizes: list[tuple[int, int]],
    vocabulary: int,
    steps: int,
    tokens: int,
    seed: int,
    step: Callable[[], object],
) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def loss(done: int) -> Tensor:
        length, pairs = sizes[done // steps]
        batch = max(1, tokens // length)
        rows, targets = recall(batch, length, pairs, vocabulary, generator)
        return cross_entropy(model(rows).flatten(0, 1), targets.flatten())

    return fit(model, loss, steps * len(sizes), 2e-3, lambda done, clock: step()).taken(1)


@torch.no_grad()
def _asked(
    model: nn.Module, sizes: list[tuple[int, int]], vocabulary: int, least: int, batch: int = 128
) -> dict:
    """Shares of right answers by length, of all and of those whose key stood ``least`` or more
    before.
    """
    generator = torch.Generator().manual_seed(99)
    accuracy, far = {}, {}
    for length, pairs in sizes:
        rows, targets = recall(batch, length, pairs, vocabulary, generator)
        right = model(rows).argmax(-1) == targets
        again = targets >= 0
        # where the same key stands among the pairs: (batch, pairs, length) has one True for each
        same = rows[:, : 2 * pairs : 2, None] == rows[:, None]
        behind = torch.arange(length) - 2 * same.int().argmax(1)
        accuracy[str(length)] = round(right[again].double().mean().item(), 4)
        away = again & (behind > least)
        far[str(length)] = round(right[away].double().mean().item(), 4) if away.any() else None
    return {"accuracy": accuracy, "far": far}
