"""Claims, what was measured of each, and the verdict, which nobody writes: it follows."""

import html
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fractal_lib.benchmark.record import load, names, rows
from fractal_lib.benchmark.registry import CASES

__all__ = ["Claim", "command_of", "records_table", "table", "verdict"]

HERE = "this page"
OF_PLAN = ("steps", "batch_size", "lr", "weight_decay")  # settings of a training that stand apart


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        said: the claim, in the words of whoever made it.
        chapter: page that tests it at length, "start/ladder" say.
        cases: for each case that the claim speaks of, whether it holds there; one may be named "".
        measured: the figures, in words.
        seeds: how many seeds, and stretches or sizes, they rest on.
        instead: what is true instead, or besides.
        records: names of the recorded runs they come from; none if they are computed in the page.
    """

    said: str
    chapter: str
    cases: Mapping[str, bool]
    measured: str
    seeds: str
    instead: str
    records: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """As `verdict` has it."""
        return verdict(self.cases)


def verdict(cases: Mapping[str, bool]) -> str:
    """True, false, or the cases in which a claim holds.

    Raises:
        ValueError: without a case, or for one that is not a bool: a comparison with NaN is False,
            and a number is no verdict.

    >>> verdict({"": True}), verdict({"one query": False, "n queries": True})
    ('true', 'true if: n queries')
    """
    if not cases or not all(type(holds) is bool for holds in cases.values()):
        raise ValueError(f"expected a bool for each case, got {dict(cases)}")
    if all(cases.values()):
        return "true"
    holding = [case for case, holds in cases.items() if holds]
    return f"true if: {'; '.join(holding)}" if holding else "false"


def table(claims: Iterable[Claim]) -> str:
    """HTML of claims, a row each: the claim, verdict and figures, what is true instead.

    >>> one = Claim("fast & cheap", "start/ladder", {"": False}, "2 of 3", "1 seed", "slow")
    >>> "fast &amp; cheap" in table([one]), ">false<" in table([one])
    (True, True)
    """
    rows = "".join(_row(claim) for claim in claims)
    heads = "".join(f"<th>{name}</th>" for name in ("claim", "verdict", "what is true"))
    return f'<table class="claims"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _row(claim: Claim) -> str:
    kind = claim.verdict.split(":")[0].replace("true if", "partly")
    page = f'<a href="../{claim.chapter}.html">{claim.chapter.split("/")[1].replace("_", " ")}</a>'
    runs = [f'<a href="#record-{_anchor(name)}">{html.escape(name)}</a>' for name in claim.records]
    word, _, rest = claim.verdict.partition(":")
    cells = (
        f"{html.escape(claim.said)} <small>({page})</small>",
        f"<b>{word}</b>{html.escape(rest)}<br>{html.escape(claim.measured)} "
        f"<small>({html.escape(claim.seeds)}; {', '.join(runs) or HERE})</small>",
        html.escape(claim.instead),
    )
    return f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _anchor(name: str) -> str:
    return name.replace("/", "-").replace("*", "all").replace(".", "-")


def records_table(claims: Iterable[Claim]) -> str:
    """HTML of every record that claims rest on: when and where it was made, and the command that
    makes it again.

    >>> one = Claim("fast", "start/ladder", {"": False}, "", "", "", ("hilbert-cpu",))
    >>> "run hilbert-speed" in records_table([one])
    True
    """
    wanted = dict.fromkeys(name for claim in claims for name in claim.records)
    return f'<table class="claims"><tbody>{"".join(map(_record, wanted))}</tbody></table>'


def _record(name: str) -> str:
    found = names(name)
    if not found:
        raise ValueError(f"there is no recorded run {name!r}")
    runs = [load(one) for one in found]
    days = sorted({run["date"][:10] for run in runs})
    made = f"{', '.join(sorted({run['device'] for run in runs}))}, {days[0]}"
    made += f" to {days[-1]}" if len(days) > 1 else ""
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f'<tr id="record-{_anchor(name)}"><td>{html.escape(name)}<br><small>{html.escape(made)}'
        f"</small></td><td><code>{html.escape(command_of(found[0]))}</code>{more}</td></tr>"
    )


def command_of(name: str) -> str:
    """The command that makes a recorded run again, from the settings that stand in it.

    Settings at their defaults are left out, and so are those that say which rows the last run
    added. What a file holds is not recorded: its path is to be filled in.

    Raises:
        ValueError: for a record that is not there, or that no case makes.

    >>> command_of("posterior-cost").startswith("python -m fractal_lib.benchmark run posterior")
    True
    """
    run = load(name)
    (case,) = [one for one in CASES.values() if one.makes(name)] or [None]
    if case is None:
        raise ValueError(f"no case makes {name!r}")
    plan = {key: value for key, value in run.get("plan", {}).items() if key in OF_PLAN}
    given = {key: run[key] for key in case.settings if key in run and key != "device"}
    given |= plan | run.get("settings", {})
    if "sizes" in case.settings:  # of all rows, whichever of them the last run added
        given["sizes"] = sorted({row["n"] for row in rows(run)})
    words = ["python -m fractal_lib.benchmark run", case.name]
    for key, (_, default) in case.settings.items():
        if key in ("progress", "only", "names", "checkpoint", "date"):
            continue
        value = given.get(key, "FILE" if key == "path" else default)
        if value is not None and _plain(value) != _plain(default):
            words += _option(key, value)
    return " ".join(words)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    several = value if isinstance(value, list | tuple) else [value]
    return [option, *(shlex.quote(str(one)) for one in several)]
