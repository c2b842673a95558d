"""Self-attention side by side: full, window and fractal."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fractal_lib.benchmark.attentions import FAR
from fractal_lib.benchmark.harness import fill_in, milliseconds, number
from fractal_lib.benchmark.machine import check_device, positive, threads_of
from fractal_lib.benchmark.peak import peak_memory
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Turns
from fractal_lib.benchmark.window_rivals import FORWARD_ONLY, OTHERS, others_made
from fractal_lib.self_attention import fractal_self_attention

__all__ = ["Shape", "benchmark_self_attention", "draw", "relative_error", "rivals", "slopes"]

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
KEYS, PASSES = ("smooth", "random"), ("forward", "forward + backward")
ERROR_ROWS = 64  # queries whose error is looked at


class Shape(NamedTuple):
    """What all rivals share: samples, heads, numbers in a head, and the geometry of
    `fractal_self_attention`.
    """

    batch: int
    heads: int
    width: int
    near: int
    cells: int


def rivals(shape: Shape) -> dict[str, Attention]:
    """Everything that is timed, by name; what is causal says so: "fractal" is as it comes, and
    every other way of `FAR` goes by its own name.

    >>> list(rivals(Shape(1, 1, 8, 16, 4)))[:4]
    ['full', 'window', 'fractal', 'cells by Hilbert']
    """
    fractal = partial(fractal_self_attention, near=shape.near, cells=shape.cells)
    plain = {
        "full": scaled_dot_product_attention,
        "window": partial(fractal, cells=0),
        "fractal": fractal,
    } | {
        name: partial(fractal, **options) for name, options in FAR.items() if not _default(options)
    }
    return plain | {
        f"{name}, causal": partial(call, is_causal=True) for name, call in plain.items()
    }


def _default(options: dict) -> bool:
    """Whether this is what one gets without asking."""
    known = inspect.signature(fractal_self_attention).parameters
    return all(known[name].default == value for name, value in options.items())


def draw(
    n: int, shape: Shape, keys: str = "random", device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each (B, heads, n, D) float32, values standard normal.

    Keys and queries are standard normal ("random"), or ("smooth") the sinusoidal code of the
    position with periods from 60 rows to 60 000, queries four times as long, so that a query is
    like the keys around it.

    >>> [x.shape for x in draw(10, Shape(1, 2, 8, 16, 4), "smooth")][0]
    torch.Size([1, 2, 10, 8])
    """
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = torch.randn(
        3, shape.batch, shape.heads, n, shape.width, device=device, generator=generator
    )
    if keys == "smooth":
        wave = torch.arange(n, device=device)[:, None] / torch.logspace(
            1, 4, -(-shape.width // 2), device=device
        )
        k = torch.cat([wave.sin(), wave.cos()], -1)[:, : shape.width].expand_as(k).contiguous()
        q = 4 * k
    return q, k, v


@case(
    "self-attention",
    records="self-attention-*",
    choices={"others": list(OTHERS), "only": [*rivals(Shape(1, 1, 8, 16, 4)), *OTHERS]},
    speed={"sizes": (1_024, 4_096), "seconds": 0.5, "memory": False, "others": tuple(OTHERS)[1:]},
)
def benchmark_self_attention(
    sizes: Sequence[int] = (1_024, 4_096, 16_384),
    batch: int = 1,
    heads: int = 4,
    width: int = 64,
    near: int = 64,
    cells: int = 8,
    full_to: int = 16_384,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 1.0,
    memory: bool = True,
    others: Sequence[str] = (),
    only: Sequence[str] | None = None,
    progress: bool = True,
) -> dict:
    """Time self-attention, full, window and fractal, with errors and peak memory. Prints a table.

    The rivals take turns, as in `benchmark_attention_methods`. Full attention is PyTorch's own,
    which on a CPU too works in blocks and keeps no matrix.

    Args:
        sizes: numbers of rows n.
        batch, heads, width: B, heads and D of float32 queries, keys and values, standard normal.
        near, cells: of `fractal_self_attention`; the window is the same with ``cells=0``.
        full_to: largest n for full attention.
        device: of torch, "cpu" or "cuda".
        threads: of the CPU.
        seconds: measuring time for each, in three turns; a call is never cut short.
        memory: measure peak memory too, on a CPU in a process of its own for each.
        others: by these packages too; FlexAttention compiles for each size. Of one that is not
            installed a ``note`` says so.
        only: these of the rest alone.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        ``rows``, one for each size, method and pass, and ``slopes``, as `slopes` fits them.
        ``seconds`` (median) and ``iqr`` are None where
        ``note`` says why; ``speedup`` is over full attention of the same kind; ``peak`` in bytes,
        above the inputs, result and gradients included, or None where it is not known; ``error``
        for smooth and random keys, as `draw` makes them, the root mean square of the difference
        from float64 softmax over that of the result itself, over 64 queries.

    Raises:
        ValueError: for numbers that are not positive, or a CUDA device that is not there.

    Source: chapter ``self_attention/near_in_content``.

    >>> settings = dict(width=8, near=16, cells=4, seconds=0.01, memory=False, progress=False)
    >>> sorted(benchmark_self_attention([96], **settings)["rows"][0])
    n | method ...
    ['error', 'iqr', 'method', 'n', 'note', 'pass', 'peak', 'seconds', 'speedup']
    """
    shape = Shape(batch, heads, width, near, cells)
    calls, notes = others_made(others, near)
    calls = {k: call for k, call in rivals(shape).items() if not only or k in only} | calls
    positive(
        sizes=sizes,
        **{name: value for name, value in shape._asdict().items() if name != "cells"},
        full_to=full_to,
        threads=threads,
        seconds=seconds,
    )
    check_device(device)
    found = []
    with threads_of(threads):
        print(_HEAD + "\n" + "-" * len(_HEAD))
        for n in sizes:
            turns = Turns[tuple[str, str]](threads)
            of_size = _warm_up(n, shape, calls, notes, full_to, device, memory, turns)
            timings = turns.measure(seconds, f"n = {n}", progress)
            fill_in(of_size, timings, "pass", {k: _full_of(k) for k in [*calls, *notes]})
            for record in of_size:
                print(_line(record), flush=True)
            found += of_size
    fitted = slopes(found)
    for name, slope in fitted.items():
        print(f"slope of log time over log n, {name:35} {slope:.2f}")
    return {"rows": found, "slopes": fitted}


def _warm_up(
    n: int,
    shape: Shape,
    calls: dict[str, Attention],
    notes: dict[str, str],
    full_to: int,
    device: str,
    memory: bool,
    turns: Turns[tuple[str, str]],
) -> list[dict]:
    """Enter every rival and pass with the timer, whose first call warms it up; a record for each,
    with its error and its peak of memory.
    """
    records, inputs = [], draw(n, shape, device=device)
    for name in [*calls, *notes]:
        note = notes.get(name, "")
        if name.startswith("full") and n > full_to:
            note = f"left out above n = {full_to}"
        error = {
            keys: relative_error(calls[name], draw(n, shape, keys, device), "causal" in name)
            for keys in KEYS
            if not note
        }
        for kind in PASSES[:1] if name in FORWARD_ONLY else PASSES:
            record = {"n": n, "method": name, "seconds": None, "iqr": None, "speedup": None}
            record |= {"error": error or None, "peak": None, "note": note, "pass": kind}
            if not note:
                turns.add((name, kind), partial(_pass(calls[name], kind), *inputs))
            if not note and memory and name in rivals(shape):
                prepare = partial(_prepare, name, kind, n, shape, device)
                record["peak"] = peak_memory(prepare, device)
            records.append(record)
    return records


def _full_of(name: str) -> str:
    return "full, causal" if "causal" in name else "full"


def _pass(call: Attention, kind: str) -> Callable[[Tensor, Tensor, Tensor], object]:
    if kind == "forward":
        return torch.no_grad()(call)

    @torch.enable_grad()
    def both(*inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(call(*leaves), leaves, inputs[2])

    return both


@torch.no_grad()
def relative_error(call: Attention, inputs: tuple[Tensor, Tensor, Tensor], causal: bool) -> float:
    """Root mean square of the error over that of the exact result, in float64, for 64 queries.

    >>> inputs = draw(100, Shape(1, 1, 8, 16, 4))
    >>> relative_error(scaled_dot_product_attention, inputs, causal=False) < 1e-6
    True
    """
    q, k, v = inputs
    n = q.shape[2]
    row = torch.linspace(0, n - 1, min(n, ERROR_ROWS), device=q.device).round().long()
    logits = q[:, :, row].double() @ k.double().mT / q.shape[-1] ** 0.5  # (B, heads, 64, n)
    if causal:
        logits.masked_fill_(torch.arange(n, device=q.device) > row[:, None], -torch.inf)
    exact = logits.softmax(-1) @ v.double()
    return (
        ((call(q, k, v)[:, :, row] - exact).square().mean() / exact.square().mean()).sqrt().item()
    )


def _prepare(name: str, kind: str, n: int, shape: Shape, device: str) -> Callable[[], object]:
    """One call of a rival, ready to go; what torch allocates once is allocated."""
    run = _pass(rivals(shape)[name], kind)
    run(*draw(2 * shape.near, shape, device=device))
    return partial(run, *draw(n, shape, device=device))


def slopes(records: list[dict], least: int = 4_096) -> dict[str, float]:
    """Least-squares slope of log time over log n from n = ``least`` on, by "method: pass"; two
    sizes at least.

    >>> quadratic = [{"n": n, "seconds": 3e-9 * n**2} for n in (4096, 8192)]
    >>> round(slopes([{"method": "m", "pass": "p"} | r for r in quadratic])["m: p"], 6)
    2.0
    """
    times: dict[str, list] = {}
    for r in records:
        if r["seconds"] and r["n"] >= least:
            times.setdefault(f"{r['method']}: {r['pass']}", []).append((r["n"], r["seconds"]))
    return {
        name: float(np.polyfit(np.log([n for n, _ in t]), np.log([s for _, s in t]), 1)[0])
        for name, t in times.items()
        if len({n for n, _ in t}) > 1
    }


_HEAD = (
    f"{'n':>7} | {'method':<24} | {'pass':<18} | {'median':>9} | {'IQR':>9} | {'vs full':>7} | "
    f"{'peak':>9} | error: smooth, random keys"
)


def _line(record: dict) -> str:
    peak = None if record["peak"] is None else record["peak"] / 2**20
    error = record["note"] or ", ".join(f"{record['error'][keys]:.1e}" for keys in KEYS)
    columns = [
        f"{record['n']:>7}",
        f"{record['method']:<24}",
        f"{record['pass']:<18}",
        f"{milliseconds(record['seconds']):>9}",
        f"{milliseconds(record['iqr']):>9}",
        f"{number(record['speedup'], 'x'):>7}",
        f"{number(peak, ' MiB'):>9}",
        error,
    ]
    return " | ".join(columns)
