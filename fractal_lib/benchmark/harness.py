"""How an attention is timed: warmed up, in turns, with the error beside the time."""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from types import FunctionType

import torch
from torch import Tensor

from fractal_lib.benchmark.keops import OTHERS, outside
from fractal_lib.benchmark.machine import check_device, free_memory, positive, threads_of
from fractal_lib.benchmark.methods import Method, methods, reference_extra
from fractal_lib.benchmark.registry import case
from fractal_lib.benchmark.timer import Timing, Turns

__all__ = [
    "benchmark_attention_methods",
    "draw",
    "fill_in",
    "milliseconds",
    "number",
    "own_code",
    "run",
]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@case(
    "context-attention",
    records="cpu-attention*",
    choices={"dtype": list(DTYPES), "others": list(OTHERS)},
    speed={"seconds": 0.5, "others": tuple(OTHERS)},
)
def benchmark_attention_methods(
    sizes: Sequence[int] = (100, 1_000, 10_000),
    batch: int = 32,
    hidden: int = 128,
    device: str = "cpu",
    compile: bool = False,
    threads: int = 1,
    seconds: float = 1.0,
    queries: int = 256,
    dtype: str = "float32",
    slope: bool = False,
    only: Sequence[str] | None = None,
    others: Sequence[str] = (),
    progress: bool = True,
) -> list[dict]:
    """Time every way to read a context at one t per sample, with its error. Prints a table.

    The rivals take turns, so that whatever else the machine does hits all alike. Forward passes.
    Preparation (the pyramid of a given kernel) is outside the clock.

    Args:
        sizes: numbers of rows n.
        batch, hidden: B and H of the rows (B, n, H), standard normal.
        device: of torch, "cpu" or "cuda".
        compile: time the forms of ``torch.compile(fullgraph=True)`` too.
        threads: of the CPU.
        seconds: measuring time for each method and size, in three turns; a call is never cut short.
        queries: how many different t take turns, so that a call does not find the last one's rows
            in the cache; 1 asks the same again and again.
        dtype: of the rows, "float32" or "bfloat16".
        slope: time the derivative in t too, by forward mode; eager forms alone.
        only: these methods alone.
        others: by these packages too, in eager form; KeOps makes and compiles its code at the first
            call, before the clock. Of one that is not installed a ``note`` says so.
        progress: show a bar on stderr (with tqdm if it is installed).

    Returns:
        one record for each size, method and form. ``distinct`` of the ``reads`` are different, on
        average over the samples. ``seconds`` (median) and ``iqr`` are None where
        memory did not suffice; ``error`` is the largest difference from float64 `DenseAttention`
        over the batch, or None; ``note`` says why there is none. ``bound``, if not None, is a
        proven limit of the error; ``speedup`` is over dense bmm in eager mode.

    Raises:
        ValueError: for numbers that are not positive, or a CUDA device that is not there.
        MemoryError: if the rows alone would not fit.

    Source: the original sketch's function of this name, corrected in chapter
    ``start/dense_attention``.

    >>> records = benchmark_attention_methods([64], batch=2, hidden=4, seconds=0.01, progress=False)
    n | method ...
    >>> records[0].keys() >= {"method", "n", "form", "reads", "distinct", "seconds", "error"}
    True
    """

    def make(rows: Tensor, queried: list[Tensor]) -> Iterable[Method]:
        yield from methods(rows, queried, only, slope)
        yield from outside(rows, queried, others, slope)

    settings = (sizes, batch, hidden, device, compile, threads, seconds, queries, progress)
    return run(make, *settings, dtype=DTYPES[dtype])


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
    dtype: torch.dtype = torch.float32,
) -> list[dict]:
    """Time what ``make(rows, queries)`` names, for each n; the rest as
    `benchmark_attention_methods` says.

    Rows are (B, header + n, H).
    """
    positive(
        sizes=sizes, batch=batch, hidden=hidden, threads=threads, seconds=seconds, queries=queries
    )
    check_device(device)
    _refuse_what_cannot_fit(max(sizes), batch, hidden, device)
    records = []
    with threads_of(threads), torch.no_grad():
        print(_HEAD + "\n" + "-" * len(_HEAD))
        for n in sizes:
            rows, queried = draw(header + n, batch, hidden, device, queries, dtype)
            rivals, turns = list(make(rows, queried)), Turns[tuple[str, str]](threads)
            of_size = _warm_up(n, rows, rivals, compile, turns)
            timings = turns.measure(seconds, f"n = {n}", progress)
            fill_in(of_size, timings, "form", {m.name: m.base for m in rivals})
            for record in of_size:
                print(_line(record), flush=True)
            records += of_size
            del rows, rivals, turns  # the next size needs the memory, and compiles for itself
            torch.compiler.reset()
            gc.collect()
    return records


def _refuse_what_cannot_fit(n: int, batch: int, hidden: int, device: str) -> None:
    needed, free = 4 * batch * n * hidden, free_memory(device)
    if needed > free:
        raise MemoryError(
            f"{n} rows for {batch} samples of {hidden} float32 need {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free: leave this size out, or lower --batch or --hidden"
        )


def draw(
    n: int,
    batch: int,
    hidden: int,
    device: str,
    queries: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, list[Tensor]]:
    """Rows (B, n, H), filled in place, and as many t (B, 1) float32 as asked for."""
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.empty(batch, n, hidden, device=device, dtype=dtype).normal_(generator=generator)
    return rows, [torch.rand(batch, 1, device=device, generator=generator) for _ in range(queries)]


def _warm_up(
    n: int, rows: Tensor, rivals: list[Method], compile: bool, turns: Turns[tuple[str, str]]
) -> list[dict]:
    """Enter every rival with the timer, whose first call of it tells its error; a record for each
    form.
    """
    device, exact = rows.device, {}
    if reference_extra(rows) < free_memory(device):
        exact = {
            m.exact: m.exact(rows, m.queries[0]) for m in {m.exact: m for m in rivals}.values()
        }
    records = []
    for method in rivals:
        needed, free = method.keeps + method.extra, free_memory(device)
        context = method.build(rows) if needed < free and not method.missing else None
        for form in ("eager", "compiled") if compile and method.compiles else ("eager",):
            record = {"n": n, "method": method.name, "form": form, "reads": method.reads}
            record |= {"distinct": method.reads if method.distinct is None else method.distinct}
            record |= {"seconds": None, "iqr": None, "speedup": None, "error": None}
            record |= {"bound": method.bound, "note": ""}
            if context is None:
                short = f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} free"
                record["note"] = method.missing or short
            else:
                out = turns.add((method.name, form), _call(method, form, context))
                record["error"], record["note"] = _error(method, out, exact.get(method.exact))
            records.append(record)
    return records


def _call(method: Method, form: str, context: Tensor) -> Callable[[], Tensor]:
    call = method.call
    if form == "compiled":
        call = torch.compile(own_code(call), fullgraph=True, dynamic=False)
    call, queries = method.wrap(call), cycle(method.queries)
    return lambda: call(context, next(queries))


def own_code(function: Callable) -> Callable:
    """A copy of a function that shares no code object with another.

    The compiler keeps eight variants of one code object, and looks through them at every call; the
    methods of a benchmark are closures of one code, and there may be more of them.

    >>> own_code(number)(1.0, "x"), own_code(number).__code__ is number.__code__
    ('1x', False)
    """
    if not isinstance(function, FunctionType):
        return function
    code, names = function.__code__.replace(), function.__globals__
    defaults, closure = function.__defaults__, function.__closure__
    own = FunctionType(code, names, function.__name__, defaults, closure)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _error(method: Method, out: Tensor, exact: Tensor | None) -> tuple[float | None, str]:
    if exact is None:
        return None, "no memory for the float64 reference"
    if out.shape != exact.shape:
        return None, f"returns {tuple(out.shape)}"
    unit = exact.abs().max().item() if method.relative else 1
    return (out - exact).abs().max().item() / unit, ""


def fill_in(
    records: list[dict],
    timings: Mapping[tuple[str, str], Timing],
    kind: str,
    bases: Mapping[str, str],
) -> None:
    """Fill in ``seconds``, ``iqr`` and ``speedup`` of records by ``method`` and ``kind``.

    Args:
        records: what is filled in.
        timings: by method and the record's ``kind``; none for what was not timed.
        kind: "form" or "pass".
        bases: for each method the one whose time is the unit of its speed-up: in eager form, or in
            the same pass.
    """
    for record in records:
        name, what = record["method"], record[kind]
        took = timings.get((name, what))
        base = timings.get((bases[name], "eager" if kind == "form" else what))
        if took:
            record["seconds"], record["iqr"] = took.median, took.iqr
            record["speedup"] = base.median / took.median if base else None


_HEAD = (
    f"{'n':>8} | {'method':<29} | {'form':<8} | {'reads':>7} | {'median':>9} | {'IQR':>9} | "
    f"{'vs bmm':>8} | error"
)


def number(value: float | None, unit: str) -> str:
    """Three digits and a unit, or a dash.

    >>> number(1234.5, " ms"), number(0.01234, "x"), number(None, "x")
    ('1234 ms', '0.0123x', '-')
    """
    return "-" if value is None else f"{value:{'.3g' if value < 1000 else '.0f'}}{unit}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as a table has them."""
    return number(None if seconds is None else 1e3 * seconds, " ms")


def _line(record: dict) -> str:
    times = f"{milliseconds(record['seconds']):>9} | {milliseconds(record['iqr']):>9}"
    error = record["note"] or f"{record['error']:.1e}"
    bound = "" if record["bound"] is None else f" (bound {record['bound']:.0e})"
    head = f"{record['n']:>8} | {record['method']:<29} | {record['form']:<8} | {record['reads']:>7}"
    return f"{head} | {times} | {number(record['speedup'], 'x'):>8} | {error}{bound}"
