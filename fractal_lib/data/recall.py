"""Multi-query associative recall: pairs of a key and a value, and later the keys again."""

import torch
from torch import Tensor

from fractal_lib.checks import as_int

__all__ = ["IGNORE", "recall"]

IGNORE = -100  # a target that is not asked for, as `torch.nn.functional.cross_entropy` has it


def recall(
    batch: int, length: int, pairs: int, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sequences that begin with pairs of a key and its value, and in which every key comes once
    more: there its value is asked for.

    Keys are 1 to ``vocabulary // 2 - 1``, values the rest, each once at most in a sequence; 0 fills
    what is left. Keys come again at an even distance behind the pairs, drawn without replacement
    with weights proportional to distance^-0.99, so most come early.

    Args:
        batch, length: sequences, and numbers in each, ``length`` even.
        pairs: at most a quarter of the length, and fewer than half the vocabulary.
        vocabulary: how many different numbers there are.
        generator: of everything that is random.

    Returns:
        (batch, length) int64 twice: what stands there, and what is asked for, `IGNORE` elsewhere.

    Raises:
        TypeError, ValueError: for sizes that are not whole numbers or do not fit.

    Source: Arora et al., Zoology (2023), whose task this is, with fillers of 0 and the same power.

    >>> rows, targets = recall(1, 8, 2, 8, torch.Generator().manual_seed(0))
    >>> (targets >= 0).sum().item(), rows[:, :4:2].max().item() < 4 <= rows[:, 1:4:2].min().item()
    (2, True)
    """
    batch, length = as_int(batch, "batch", least=1), as_int(length, "length", least=4)
    vocabulary = as_int(vocabulary, "vocabulary", least=4)
    most = min(length // 4, vocabulary // 2 - 1)
    pairs = as_int(pairs, "pairs", least=1, most=most)
    if length % 2:
        raise ValueError(f"length must be even, got {length}")
    half = vocabulary // 2
    keys = 1 + _some(torch.ones(batch, half - 1), pairs, generator)  # (batch, pairs)
    values = half + _some(torch.ones(batch, vocabulary - half), pairs, generator)
    room = length // 2 - pairs
    weight = torch.arange(1, room + 1, dtype=torch.float64) ** -0.99
    place = 2 * pairs + 2 * _some(weight.expand(batch, room), pairs, generator)
    rows = torch.zeros(batch, length, dtype=torch.long)
    rows[:, : 2 * pairs] = torch.stack([keys, values], -1).flatten(1)
    rows.scatter_(1, place, keys)
    return rows, torch.full_like(rows, IGNORE).scatter_(1, place, values)


def _some(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(weight, count, generator=generator)
