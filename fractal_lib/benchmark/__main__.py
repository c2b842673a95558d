"""The command line: ``python -m fractal_lib.benchmark list|run|speed|compare``."""

import argparse
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fractal_lib.benchmark import CASES, Case
from fractal_lib.benchmark.compare import compare, read_record
from fractal_lib.benchmark.machine import check_device, describe
from fractal_lib.benchmark.record import add_to, check_same_settings, check_writable, names, record
from fractal_lib.posterior.training import Diverged

PROGRAM = "python -m fractal_lib.benchmark"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and stop."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, and do what they say.

    >>> main("run context-attention --sizes 64 --batch 2 --hidden 4 --seconds 0.01 --quiet".split())
    n | method ...
    """
    parser = Parser(prog=PROGRAM, description="Everything that makes a recorded figure.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="list|run|speed|compare"
    )
    commands.add_parser("list", help="name every case, and the record it makes")
    run = commands.add_parser(
        "run", help="run a case: run CASE --help tells its settings", add_help=False
    )
    run.add_argument("case", nargs="?")
    every = commands.add_parser("speed", help="time all that is timed, in some minutes")
    every.add_argument("--folder", type=Path, help="write a record of each case there")
    every.add_argument("--quiet", action="store_true", help="no progress bar")
    two = commands.add_parser("compare", help="what moved by more than its spread")
    two.add_argument("old", metavar="A.json")
    two.add_argument("new", metavar="B.json")
    given, rest = parser.parse_known_args(arguments)
    if given.command == "run":
        return _run(parser, given.case, rest)
    if rest:
        parser.error(f"{given.command} takes no {' '.join(rest)}")
    if given.command == "speed":
        return _speed(parser, given.folder, given.quiet)
    if given.command == "list":
        print("\n".join(_listed()))
        return None
    try:
        print("\n".join(compare(read_record(given.old), read_record(given.new))))
    except ValueError as error:
        parser.error(str(error))


def _listed() -> list[str]:
    width = max(map(len, CASES))
    lines = []
    for one in CASES.values():
        made = [name for name in names() if one.makes(name)]
        makes = one.records if len(made) > 1 else "".join(made) or "no record"
        lines.append(f"{one.name:<{width}}  {one.summary} ({makes})")
    return lines


def _speed(parser: Parser, folder: Path | None, quiet: bool) -> None:
    """Run every case that measures nothing but time, with the settings that it has for this."""
    for case in CASES.values():
        if case.speed is None:
            continue
        print(f"\n{case.name}: {case.summary}", flush=True)
        settings = dict(case.speed) | {"progress": not quiet}
        try:
            file = folder / f"{case.name}.json" if folder else None
            if file:
                check_writable(file)
            machine = describe("cpu", settings.get("threads", 1), case.packages)
            record(case.run(**settings), file, machine)
        except ImportError as error:
            print(f"left out: {error}")
        except (ValueError, MemoryError, OSError) as error:
            parser.error(str(error))
    if folder:
        print(f"\nwritten to {folder}")


def _run(parser: Parser, name: str | None, rest: list[str]) -> None:
    if name is None and {"-h", "--help"} & set(rest):
        parser.exit(0, f"run CASE [--setting value ...] [--json FILE]: {', '.join(CASES)}\n")
    if name not in CASES:
        got = f"got {name!r}" if name else "got none"
        parser.error(f"expected a case, one of {', '.join(CASES)}; {got}")
    case = CASES[name]
    options = options_of(case)
    given, unknown = options.parse_known_args(rest)
    settings = {k: v for k, v in vars(given).items() if v is not inspect.Parameter.empty}
    if unknown:
        options.error(
            f"unknown setting {unknown[0]}; there are --{', --'.join(sorted(settings))}".replace(
                "_", "-"
            )
        )
    file, add = settings.pop("json"), settings.pop("add")
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun one writes
        file = None
    quiet = settings.pop("quiet")
    if "progress" in case.settings:
        settings["progress"] = not quiet
    device = settings.get("device", "cpu")
    try:
        check_device(device)
        old = None
        if file:
            check_writable(file)
        if file and add and file.exists():
            old = read_record(str(file))
            check_same_settings(old, {k: v for k, v in settings.items() if k != "progress"})
        machine = describe(device, settings.get("threads", 1), case.packages)
        for payload in case.payloads(**settings):
            record(add_to(old, payload) if old else payload, file, machine)
    except (ValueError, MemoryError, ImportError, OSError, Diverged) as error:
        options.error(str(error))
    if file:
        print(f"written to {file}")


def options_of(case: Case) -> Parser:
    """The options of a case, by the types, defaults and docstring of its function.

    >>> options_of(CASES["hilbert-speed"]).parse_args(["--cells", "10"]).cells
    10
    """
    parser = Parser(prog=f"{PROGRAM} run {case.name}", description=case.summary, allow_abbrev=False)
    described = _descriptions(case)
    for name, (kind, default) in case.settings.items():
        if name == "progress":  # --quiet
            continue
        required = default is inspect.Parameter.empty
        shown = "required" if required else f"default {_shown(default)}"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=default,
            required=required,
            help=f"{described.get(name, '')}{_known(case, name)} ({shown})".strip().replace(
                "%", "%%"
            ),
            **_kind(kind, case.choices.get(name)),
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    parser.add_argument(
        "--add", action="store_true", help="keep what FILE has of rows that this run does not make"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _kind(kind: Any, choices: Sequence[str] | None) -> dict[str, Any]:
    """What argparse must know of a type: a number, str, Path or bool, a sequence of one, or None
    beside it.
    """
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (one for one in typing.get_args(kind) if one is not type(None))
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    several = {}
    if typing.get_origin(kind) is not None:
        (kind,) = (one for one in typing.get_args(kind) if one is not Ellipsis)
        several = {"nargs": "+"}
    limited = {"choices": list(choices), "metavar": "NAME"} if choices else {}
    return {"type": kind} | several | limited


def _known(case: Case, name: str) -> str:
    return f": {', '.join(case.choices[name])}" if name in case.choices else ""


def _shown(default: Any) -> str:
    if isinstance(default, list | tuple):
        return " ".join(map(str, default))
    return "none" if default is None else str(default)


def _descriptions(case: Case) -> dict[str, str]:
    """What the docstring's Args say of each setting, in one line."""
    text = inspect.getdoc(case.function) or ""
    section = re.search(r"^Args:\n((?: +.*\n?|\n(?= ))+)", text, re.M)
    described = {}
    if section:
        for entry in re.split(r"\n(?= {4}\w)", section[1]):
            head, _, words = entry.partition(": ")
            described |= {
                name.strip(): " ".join(words.split()).rstrip(".") for name in head.split(",")
            }
    return described


def script() -> None:
    """`main`, of which Ctrl-C is a sentence, if there is one, and exit code 130."""
    try:
        main()
    except KeyboardInterrupt as stop:
        if str(stop):
            print(f"{PROGRAM}: {stop}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    script()
