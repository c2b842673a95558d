"""The heads side by side: forward, and the step of training that asks for derivatives in t."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from fractal_lib.attention import PATTERNS, DenseAttention, Reads, Tree
from fractal_lib.benchmark.harness import run
from fractal_lib.benchmark.methods import Method, as_it_is, num_reads
from fractal_lib.benchmark.registry import case
from fractal_lib.posterior import PosteriorAffine, UltimateFractalPosteriorAffine

__all__ = ["PASSES", "benchmark_heads", "heads"]

LATENT = 3
PASSES = ("forward", "train", "train with context")
NEEDS = {"forward": (0, 3), "train": (2, 3), "train with context": (3, 8)}
"""Copies of the context that a call needs at most, and more for building a pyramid of it."""

BASE = "dense, float32 bmm"


LABELS = {"hilbert": "Hilbert", "julia": "Julia"}
"""What records call the head of a pattern, where that is not the pattern's own name."""


class DenseBmm(DenseAttention):
    """The original kernel in float32, as the public head has it: the fastest correct form in eager
    mode.
    """

    def reads(self, t: Tensor, n: int | Tree) -> Reads:
        """All rows: indices and weights (B, Q, n)."""
        l = n.n if isinstance(n, Tree) else n
        ts = torch.linspace(0, 1, l, dtype=t.dtype, device=t.device)
        weights = torch.softmax(-((l * (ts - t.unsqueeze(-1))) ** 2), -1)
        return Reads(torch.arange(l, device=t.device).expand(weights.shape), weights)


def heads(hidden: int) -> dict[str, PosteriorAffine]:
    """Every head that is timed, by name: a float32 product, one for each of `PATTERNS`, and the
    combined one; all of one network.
    """
    parts = {BASE: DenseBmm()} | {LABELS.get(name, name): p() for name, p in PATTERNS.items()}
    made = {name: PosteriorAffine(LATENT, hidden, attention) for name, attention in parts.items()}
    made["combined"] = UltimateFractalPosteriorAffine(LATENT, hidden)
    torch.manual_seed(0)
    net = PosteriorAffine(LATENT, hidden).net
    last = cast("torch.nn.Linear", net[-1])
    torch.nn.init.normal_(last.weight, std=0.05)
    for head in made.values():
        head.net.load_state_dict(net.state_dict())
    return made


@case("heads", records="heads-*", speed={"seconds": 0.3})
def benchmark_heads(
    sizes: Sequence[int] = (100, 1_000, 10_000),
    batch: int = 32,
    hidden: int = 128,
    device: str = "cpu",
    compile: bool = False,
    threads: int = 1,
    seconds: float = 1.0,
    queries: int = 256,
    progress: bool = True,
) -> list[dict]:
    """Time every head, and the training step that asks for derivatives in t. Prints a table.

    Args:
        sizes: numbers of rows n.
        batch, hidden: B and H of the context (B, 1 + n, H), float32 standard normal.
        device: of torch, "cpu" or "cuda".
        compile: time the forms of ``torch.compile(fullgraph=True)`` too.
        threads: of the CPU.
        seconds: measuring time for each head, pass and size, in three turns.
        queries: how many different t take turns.
        progress: show a bar on stderr (with tqdm if it is installed).

    Passes: *forward*, (m, s) at one t per sample; *train*, (m, s), their derivatives in t, and the
    gradient of a loss of all four by the parameters, as for a context that is given; *train with
    context*, by the context too, as for one that an encoder makes: a gradient as large as the
    context, whatever the head.

    Returns:
        records as `benchmark_attention_methods` has them, with ``head`` and ``pass``; ``n`` and
        ``reads`` leave out the header. ``error`` is the largest difference of m and s, or of the
        gradient of the first layer, from the same head's in float64, over the largest value;
        ``speedup`` is over the dense float32 head.

    Raises:
        ValueError, MemoryError: as `benchmark_attention_methods`.

    Source: chapter ``gallery/combined_head``.

    >>> records = benchmark_heads([16], batch=2, hidden=4, seconds=0.01, progress=False)
    n | method ...
    >>> {record["pass"] for record in records} == set(PASSES)
    True
    """
    settings = (sizes, batch, hidden, device, compile, threads, seconds, queries, progress)
    # one pass after another, so that the table reads by pass
    records = [
        record for kind in PASSES for record in run(partial(_methods, kind), *settings, header=1)
    ]
    for record in records:
        record["head"], record["pass"] = record["method"].split(": ")
    return records


def _methods(kind: str, ctx: Tensor, queries: list[Tensor]) -> Iterator[Method]:
    batch, rows, hidden = ctx.shape
    size = ctx.numel() * ctx.element_size()
    needs, pools = NEEDS[kind]
    for name, head in heads(hidden).items():
        head.to(ctx.device)
        reads = num_reads(head.attention, queries[0], rows - 1)
        pooled = head.attention.tree(rows - 1).levels > 1  # a pyramid for every call
        call, exact, wrap = _forward(head), _exact_forward(head), as_it_is
        if kind != "forward":
            call, exact, wrap = (
                _loss(head),
                _exact_gradient(head),
                _gradient(head, kind == "train with context"),
            )
        yield Method(
            name=f"{name}: {kind}",
            reads=reads,
            keeps=0,
            extra=12 * batch * reads * ctx.element_size() + size * (needs + pools * pooled),
            build=as_it_is,
            call=call,
            queries=queries,
            exact=exact,
            wrap=wrap,
            base=f"{BASE}: {kind}",
            # the derivative of BASE does not: PyTorch issue 177261; a pyramid that is built inside
            # is computed again for every read, in six times the time and much memory
            compiles=(kind == "forward" or name != BASE) and not pooled,
            relative=True,
        )


def _forward(head: PosteriorAffine) -> Callable:
    return lambda ctx, t: torch.cat(head(ctx, t), 1)


def _loss(head: PosteriorAffine) -> Callable:
    def loss(ctx, t):
        values, slopes = head(ctx, t, return_t_dir=True)
        # slopes grow with n; unscaled they would drown the values
        return (
            sum(v.square().sum() for v in values)
            + sum(d.square().sum() for d in slopes) / ctx.shape[1] ** 2
        )

    return loss


def _gradient(head: PosteriorAffine, with_context: bool) -> Callable:
    parameters = list(head.parameters())

    def wrap(loss):
        def call(ctx, t):
            with torch.enable_grad():
                ctx = ctx.detach().requires_grad_(with_context)
                inputs = [*parameters, ctx] if with_context else parameters
                grads = torch.autograd.grad(loss(ctx, t), inputs, allow_unused=True)
            return grads[[p is head.net[0].weight for p in parameters].index(True)]

        return call

    return wrap


def _exact_forward(head: PosteriorAffine) -> Callable:
    exact = copy.deepcopy(head).double()
    one = _forward(exact)
    return lambda ctx, t: torch.cat(
        [one(c[None].double(), s[None].double()) for c, s in zip(ctx, t, strict=True)]
    )


def _exact_gradient(head: PosteriorAffine) -> Callable:
    exact = copy.deepcopy(head).double()
    one = _gradient(exact, False)(_loss(exact))
    return lambda ctx, t: sum(
        one(c[None].double(), s[None].double()) for c, s in zip(ctx, t, strict=True)
    )
