"""Self-attention side by side: full, window and fractal. ``python -m
fractal_lib.benchmark.self_attention --help``.
"""

import argparse
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Timer

from fractal_lib import fractal_self_attention
from fractal_lib.benchmark.harness import measure
from fractal_lib.benchmark.machine import check_device, describe, load_average
from fractal_lib.benchmark.masks import benchmark_masks
from fractal_lib.benchmark.peak import peak_memory

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
    """Everything that is timed, by name; what is causal says so.

    >>> list(rivals(Shape(1, 1, 8, 16, 4)))
    ['full', 'window', 'fractal', 'full, causal', 'window, causal', 'fractal, causal']
    """
    fractal = partial(fractal_self_attention, near=shape.near, cells=shape.cells)
    plain = {
        "full": scaled_dot_product_attention,
        "window": partial(fractal, cells=0),
        "fractal": fractal,
    }
    return plain | {
        f"{name}, causal": partial(call, is_causal=True) for name, call in plain.items()
    }


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
    progress: bool = True,
) -> list[dict]:
    """Time self-attention forward, and forward with backward, and print a table.

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
        memory: measure peak memory too, on a CPU in a process for each reading.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        one record for each size, method and pass. ``seconds`` (median) and ``iqr`` are None where
        ``note`` says why; ``speedup`` is over full attention of the same kind; ``peak`` in bytes,
        above the inputs, result and gradients included, or None where it is not known; ``error``
        for smooth and random keys, as `draw` makes them, the root mean square of the difference
        from float64 softmax over that of the result itself, over 64 queries.

    Raises:
        ValueError: for numbers that are not positive, or a CUDA device that is not there.

    Source: chapter ``attention/self_attention``.

    >>> records = benchmark_self_attention([96], width=8, near=16, cells=4, seconds=0.01, memory=False, progress=False)
    n | method ...
    >>> sorted(records[0])
    ['error', 'iqr', 'method', 'n', 'note', 'pass', 'peak', 'seconds', 'speedup']
    """
    shape = Shape(batch, heads, width, near, cells)
    if min([*sizes, batch, heads, width, near, full_to, threads, seconds]) <= 0:
        raise ValueError(
            "sizes, batch, heads, width, near, full_to, threads and seconds must be positive"
        )
    check_device(device)
    before, records = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        print(_HEAD + "\n" + "-" * len(_HEAD))
        for n in sizes:
            of_size = list(_of_size(n, shape, full_to, device, threads, memory))
            measure([r for r, _ in of_size], [timer for _, timer in of_size], seconds, progress)
            for record, _ in of_size:
                record["method"], record["pass"] = record["method"].split(": ")
                del record["form"]
                print(_line(record), flush=True)
                records.append(record)
    finally:
        torch.set_num_threads(before)
    return records


def _of_size(
    n: int, shape: Shape, full_to: int, device: str, threads: int, memory: bool
) -> Iterator[tuple[dict, Timer | None]]:
    """A record and a timer for each rival and pass, called once, which tells its error."""
    inputs = draw(n, shape, device=device)
    for name, call in rivals(shape).items():
        timed = not name.startswith("full") or n <= full_to
        error = {
            keys: relative_error(call, draw(n, shape, keys, device), "causal" in name)
            for keys in KEYS
            if timed
        }
        for kind in PASSES:
            record = {
                "n": n,
                "method": f"{name}: {kind}",
                "form": "eager",
                "seconds": None,
                "iqr": None,
            }
            record |= {
                "speedup": f"full{', causal' * ('causal' in name)}: {kind}",
                "error": error or None,
            }
            record["peak"] = None
            if timed and memory:
                record["peak"] = peak_memory(
                    partial(_prepare, name, kind, n, shape, device), device
                )
            record["note"] = "" if timed else f"left out above n = {full_to}"
            run = _pass(call, kind)
            timer = Timer(
                "run(*inputs)", globals={"run": run, "inputs": inputs}, num_threads=threads
            )
            if timed:
                run(*inputs)
            yield record, timer if timed else None


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

    >>> squared = [{"n": n, "method": "m", "pass": "p", "seconds": 3e-9 * n**2} for n in (4096, 8192)]
    >>> round(slopes(squared)["m: p"], 6)
    2.0
    """
    times: dict[str, list] = {}
    for r in records:
        if r["seconds"] and r["n"] >= least:
            times.setdefault(f"{r['method']}: {r['pass']}", []).append((r["n"], r["seconds"]))
    return {
        name: float(np.polyfit(*np.log(t).T, 1)[0])
        for name, t in times.items()
        if len({n for n, _ in t}) > 1
    }


_HEAD = (
    f"{'n':>7} | {'method':<15} | {'pass':<18} | {'median':>9} | {'IQR':>9} | {'vs full':>7} | {'peak':>9} | "
    "error: smooth, random keys"
)


def _line(record: dict) -> str:
    def show(value: float | None, unit: str) -> str:
        return "-" if value is None else f"{value:{'.3g' if value < 1000 else '.0f'}}{unit}"

    times = [None if record[key] is None else 1e3 * record[key] for key in ("seconds", "iqr")]
    peak = None if record["peak"] is None else record["peak"] / 2**20
    error = record["note"] or ", ".join(f"{record['error'][keys]:.1e}" for keys in KEYS)
    return (
        f"{record['n']:>7} | {record['method']:<15} | {record['pass']:<18} | {show(times[0], ' ms'):>9} | "
        f"{show(times[1], ' ms'):>9} | {show(record['speedup'], 'x'):>7} | {show(peak, ' MiB'):>9} | {error}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, run, and write the record if asked to.

    >>> main("--sizes 96 --width 8 --seconds 0.01 --no-memory --quiet".split())
    n | method ...
    """
    default = {
        name: p.default
        for name, p in inspect.signature(benchmark_self_attention).parameters.items()
    }
    parser = argparse.ArgumentParser(
        prog="python -m fractal_lib.benchmark.self_attention",
        description="Time full, window and fractal self-attention, with errors and peak memory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--masks", action="store_true", help="time FlexAttention under the curves' masks instead"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(default["sizes"]), help="numbers of rows"
    )
    for name, told in (
        ("batch", "samples"),
        ("heads", "heads"),
        ("width", "numbers in a head"),
        ("near", "rows in a block"),
        ("cells", "cells for a block at the least distance"),
        ("full-to", "largest n for full attention"),
        ("threads", "threads of the CPU"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default[name.replace("-", "_")], help=told
        )
    parser.add_argument("--device", default=default["device"], help="cpu or cuda")
    parser.add_argument(
        "--seconds", type=float, default=default["seconds"], help="measuring time of each"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", "--out", type=Path, metavar="FILE", help="write the run there")
    settings = vars(parser.parse_args(arguments))
    file, only_masks = settings.pop("json"), settings.pop("masks")
    settings["memory"], settings["progress"] = (
        not settings.pop("no_memory"),
        not settings.pop("quiet"),
    )
    try:
        machine = describe(settings["device"], settings["threads"])
        if only_masks:
            settings = {
                name: settings[name] for name in inspect.signature(benchmark_masks).parameters
            }
            rows, found = benchmark_masks(**settings), {}
        else:
            rows = benchmark_self_attention(**settings)
            found = {"slopes": slopes(rows)}
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for name, slope in found.get("slopes", {}).items():
        print(f"slope of log time over log n, {name:35} {slope:.2f}")
    if file:
        machine["load_average_after"] = load_average()  # this run's own threads are in it
        file.write_text(
            json.dumps(machine | {"settings": settings, "rows": rows} | found, indent=1) + "\n"
        )
        print(f"written to {file}")


if __name__ == "__main__":
    main()
