"""How it is timed: warmed up, in turns, by `torch.utils.benchmark`, with the error beside the time."""

import gc
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle

import torch
from torch import Tensor
from torch.utils.benchmark import Measurement, Timer

from fractal_lib.benchmark.machine import check_device, free_memory
from fractal_lib.benchmark.methods import Method, methods, reference_extra
from fractal_lib.progress import progress_bar

TURNS = 3


def benchmark_attention_methods(
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
    """Time every way to read a context at one t per sample, and print a table.

    The rivals take turns, so that whatever else the machine does hits all alike. Forward passes
    only. Preparation (the pyramid of a given kernel) is outside the clock.

    Args:
        sizes: numbers of rows n.
        batch, hidden: B and H of the rows (B, n, H), float32 standard normal.
        device: of torch, "cpu" or "cuda".
        compile: time the forms of ``torch.compile(fullgraph=True)`` too.
        threads: of the CPU.
        seconds: measuring time for each method and size, in three turns; a call is never cut short.
        queries: how many different t take turns, so that a call does not find the last one's rows
            in the cache; 1 asks the same again and again.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        one record for each size, method and form. ``seconds`` (median) and ``iqr`` are None where
        memory did not suffice; ``error`` is the largest difference from float64 `DenseAttention`
        over the batch, or None; ``note`` says why there is none. ``bound``, if not None, is a
        proven limit of the error; ``speedup`` is over dense bmm in eager mode.

    Raises:
        ValueError: for numbers that are not positive, or a CUDA device that is not there.
        MemoryError: if the rows alone would not fit.

    Source: the original sketch's function of this name, made honest in chapter
    ``start/dense_attention``.

    >>> records = benchmark_attention_methods([64], batch=2, hidden=4, seconds=0.01, progress=False)
    n | method ...
    >>> sorted(records[0])
    ['bound', 'error', 'form', 'iqr', 'method', 'n', 'note', 'reads', 'seconds', 'speedup']
    """
    return run(methods, sizes, batch, hidden, device, compile, threads, seconds, queries, progress)


def run(
    make: Callable[[Tensor, list[Tensor]], Iterable[Method]],
    sizes: Sequence[int],
    batch: int,
    hidden: int,
    device: str,
    compile: bool,
    threads: int,
    seconds: float,
    queries: int,
    progress: bool,
    header: int = 0,
) -> list[dict]:
    """Time what ``make(rows, queries)`` names, for each n; the rest as
    `benchmark_attention_methods` says.

    Rows are (B, header + n, H).
    """
    if min([*sizes, batch, hidden, threads, queries, seconds]) <= 0:
        raise ValueError("sizes, batch, hidden, threads, seconds and queries must be positive")
    check_device(device)
    _refuse_what_cannot_fit(max(sizes), batch, hidden, device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    records = []
    try:
        print(_HEAD + "\n" + "-" * len(_HEAD))
        for n in sizes:
            rows, queried = _draw(header + n, batch, hidden, device, queries)
            rivals = list(make(rows, queried))
            of_size, timers = _warm_up(n, rows, rivals, compile, threads)
            measure(of_size, timers, seconds, progress)
            for record in of_size:
                print(_line(record), flush=True)
            records += of_size
            del rows, rivals, timers  # the next size needs the memory, and compiles for itself
            torch.compiler.reset()
            gc.collect()
    finally:
        torch.set_num_threads(before)
    return records


def _refuse_what_cannot_fit(n: int, batch: int, hidden: int, device: str) -> None:
    needed, free = 4 * batch * n * hidden, free_memory(device)
    if needed > free:
        raise MemoryError(
            f"{n} rows for {batch} samples of {hidden} float32 need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} "
            f"GiB are free: leave this size out, or lower --batch or --hidden"
        )


def _draw(
    n: int, batch: int, hidden: int, device: str, queries: int
) -> tuple[Tensor, list[Tensor]]:
    """Rows (B, n, H), filled in place, and as many t (B, 1) as asked for."""
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.empty(batch, n, hidden, device=device).normal_(generator=generator)
    return rows, [torch.rand(batch, 1, device=device, generator=generator) for _ in range(queries)]


@torch.no_grad()
def _warm_up(
    n: int, rows: Tensor, rivals: list[Method], compile: bool, threads: int
) -> tuple[list[dict], list[Timer | None]]:
    """Call everything once, which compiles it and tells its error; a record and a timer for each
    form.
    """
    device, exact = rows.device, {}
    if reference_extra(rows) < free_memory(device):
        exact = {
            m.exact: m.exact(rows, m.queries[0]) for m in {m.exact: m for m in rivals}.values()
        }
    records, timers = [], []
    for method in rivals:
        fits = method.keeps + method.extra < (free := free_memory(device))
        context = method.build(rows) if fits else None
        for form in ("eager", "compiled") if compile and method.compiles else ("eager",):
            record = {"n": n, "method": method.name, "form": form, "reads": method.reads}
            record |= {
                "seconds": None,
                "iqr": None,
                "speedup": method.base,
                "error": None,
                "bound": method.bound,
            }
            timer = None
            if fits:
                call = (
                    torch.compile(method.call, fullgraph=True, dynamic=False)
                    if form == "compiled"
                    else method.call
                )
                call = method.wrap(call)
                out = call(context, method.queries[0])
                record["error"], record["note"] = _error(method, out, exact.get(method.exact))
                names = {"call": call, "context": context, "queries": cycle(method.queries)}
                timer = Timer("call(context, next(queries))", globals=names, num_threads=threads)
            else:
                record["note"] = (
                    f"needs {(method.keeps + method.extra) / 2**30:.1f} GiB, {free / 2**30:.1f} free"
                )
            records.append(record)
            timers.append(timer)
    return records, timers


def _error(method: Method, out: Tensor, exact: Tensor | None) -> tuple[float | None, str]:
    if exact is None:
        return None, "no memory for the float64 reference"
    if out.shape != exact.shape:
        return None, f"returns {tuple(out.shape)}"
    unit = exact.abs().max().item() if method.relative else 1
    return (out - exact).abs().max().item() / unit, ""


@torch.no_grad()
def measure(
    records: list[dict], timers: list[Timer | None], seconds: float, progress: bool
) -> None:
    """Fill in times, taken in turns, and speed-ups."""
    todo = [(record, timer, []) for record, timer in zip(records, timers, strict=True) if timer]
    with progress_bar(TURNS * len(todo), f"n = {records[0]['n']}", progress) as step:
        for _ in range(TURNS):
            for _, timer, taken in todo:
                taken.append(timer.blocked_autorange(min_run_time=seconds / TURNS))
                step()
    for record, _, taken in todo:
        (merged,) = Measurement.merge(taken)
        record["seconds"], record["iqr"] = merged.median, merged.iqr
    eager = {r["method"]: r["seconds"] for r in records if r["form"] == "eager"}
    for record in records:
        base, taken = eager[record["speedup"]], record["seconds"]
        record["speedup"] = base / taken if base and taken else None


_HEAD = f"{'n':>8} | {'method':<23} | {'form':<8} | {'reads':>7} | {'median':>9} | {'IQR':>9} | {'vs bmm':>8} | error"


def _line(record: dict) -> str:
    def show(key: str, scale: float, unit: str) -> str:
        value = record[key]
        return (
            "-"
            if value is None
            else f"{value * scale:{'.3g' if value * scale < 1000 else '.0f'}}{unit}"
        )

    times = f"{show('seconds', 1e3, ' ms'):>9} | {show('iqr', 1e3, ' ms'):>9}"
    error = record["note"] or f"{record['error']:.1e}"
    bound = "" if record["bound"] is None else f" (bound {record['bound']:.0e})"
    head = f"{record['n']:>8} | {record['method']:<23} | {record['form']:<8} | {record['reads']:>7}"
    return f"{head} | {times} | {show('speedup', 1, 'x'):>8} | {error}{bound}"
