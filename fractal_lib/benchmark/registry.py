"""The registry of cases: everything that makes a recorded figure is in `CASES`, by name."""

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from fractal_lib.benchmark.machine import check_device, threads_of

__all__ = ["CASES", "Case", "case"]

Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True)
class Case:
    """One case: a function whose keyword arguments are its settings.

    Attributes:
        name: what the command line calls it.
        function: returns its rows, a list of dicts, or a payload, a dict with "rows" or "runs"; or
            yields payloads that grow, so that a long run can be recorded on the way.
        records: pattern of the names of its recorded runs, as `fractal_lib.benchmark.record.load`
            takes them; "" if there are none.
        choices: for a setting, the names it can take.
        packages: other packages whose versions belong in the record.
        speed: settings with which ``speed`` runs it, among all cases that measure nothing but time;
            None for another case.
    """

    name: str
    function: Callable
    records: str = ""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    speed: Mapping[str, Any] | None = None

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring."""
        text = " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())
        return text.split(". ")[0].rstrip(".")

    @property
    def settings(self) -> dict[str, tuple[Any, Any]]:
        """Type and default of every setting, by name; the default of a required one is
        ``inspect.Parameter.empty``.

        >>> CASES["hilbert-speed"].settings["cells"]
        (<class 'int'>, 1000000)
        """
        types = typing.get_type_hints(self.function)
        parameters = inspect.signature(self.function).parameters
        return {name: (types[name], p.default) for name, p in parameters.items()}

    def payloads(self, **settings: Any) -> Iterator[dict]:
        """Run it: what is to be recorded, the last being the whole; on as many threads as it says
        (``threads``, else one).

        Raises:
            ValueError: for a name that ``choices`` does not have, or a device that is not there.
        """
        given = {k: v for k, (_, v) in self.settings.items() if v is not inspect.Parameter.empty}
        given |= settings
        for name, known in self.choices.items():
            value = given.get(name)
            for one in [value] if isinstance(value, str) else value or []:
                if one not in known:
                    raise ValueError(f"{name} must be one of {', '.join(known)}, got {one!r}")
        check_device(given.get("device", "cpu"))
        # where a file lies says nothing of the figures
        recorded = {k: v for k, v in given.items() if k != "progress" and not isinstance(v, Path)}
        with threads_of(given.get("threads", 1)):
            found = self.function(**given)
            for payload in found if inspect.isgenerator(found) else iter([found]):
                yield {"settings": recorded} | _payload(payload)

    def run(self, **settings: Any) -> dict:
        """The whole payload.

        >>> tiny = dict(sizes=[9], batch=1, hidden=2, seconds=1e-3, queries=1, progress=False)
        >>> sorted(CASES["context-attention"].run(**tiny))
        n | method ...
        ['rows', 'settings']
        """
        *_, payload = self.payloads(**settings)
        return payload

    def makes(self, name: str) -> bool:
        """Whether the recorded run of this name is one of its own."""
        return fnmatch(name, self.records)


def _payload(found: Any) -> dict:
    return {"rows": found} if isinstance(found, list) else found


CASES: dict[str, Case] = {}
"""Every case by its name, in the order in which they are listed."""


def case(
    name: str,
    records: str = "",
    choices: Mapping[str, Sequence[str]] | None = None,
    packages: tuple[str, ...] = (),
    speed: Mapping[str, Any] | None = None,
) -> Callable[[Function], Function]:
    """Enter a function in `CASES`; the arguments are those of `Case`. It stays as it is.

    Raises:
        ValueError: if the name is taken by another function.
    """

    def enter(function: Function) -> Function:
        if name in CASES and CASES[name].function.__qualname__ != function.__qualname__:
            raise ValueError(f"there is a case {name!r} already: {CASES[name].function}")
        CASES[name] = Case(name, function, records, choices or {}, packages, speed)
        return function

    return enter
