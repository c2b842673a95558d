"""The command line: ``python -m fractal_lib.benchmark``."""

import argparse
import inspect
import json
from pathlib import Path

from fractal_lib.benchmark import benchmark_attention_methods, benchmark_heads
from fractal_lib.benchmark.machine import describe, load_average


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, run, and write the record if asked to.

    >>> main("--sizes 64 --batch 2 --hidden 4 --seconds 0.01 --quiet".split())
    n | method ...
    """
    default = {
        name: p.default
        for name, p in inspect.signature(benchmark_attention_methods).parameters.items()
    }
    parser = argparse.ArgumentParser(
        prog="python -m fractal_lib.benchmark",
        description="Time every way to read a context at one t per sample, with its error against float64 dense.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--heads", action="store_true", help="time the heads, and their training step, instead"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(default["sizes"]), help="numbers of rows"
    )
    parser.add_argument("--batch", type=int, default=default["batch"], help="samples")
    parser.add_argument("--hidden", type=int, default=default["hidden"], help="numbers in a row")
    parser.add_argument("--device", default=default["device"], help="cpu or cuda")
    parser.add_argument(
        "--compile", action="store_true", help="time the forms of torch.compile too"
    )
    parser.add_argument(
        "--threads", type=int, default=default["threads"], help="threads of the CPU"
    )
    parser.add_argument(
        "--seconds", type=float, default=default["seconds"], help="measuring time of each method"
    )
    parser.add_argument(
        "--queries", type=int, default=default["queries"], help="different t that take turns"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the run there")
    settings = vars(parser.parse_args(arguments))
    file, settings["progress"] = settings.pop("json"), not settings.pop("quiet")
    benchmark = benchmark_heads if settings.pop("heads") else benchmark_attention_methods
    try:
        machine = describe(settings["device"], settings["threads"])
        rows = benchmark(**settings)
    except (ValueError, MemoryError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if file:
        del settings["progress"]
        machine["load_average_after"] = load_average()  # this run's own threads are in it
        file.write_text(json.dumps(machine | {"settings": settings, "rows": rows}, indent=1) + "\n")
        print(f"written to {file}")


if __name__ == "__main__":
    main()
