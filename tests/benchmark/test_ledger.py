"""Verdicts follow from what was measured, and every record names a command that makes it again."""

import re
import shlex
from pathlib import Path

import pytest

from fractal_lib.benchmark.__main__ import options_of
from fractal_lib.benchmark.ledger import Claim, command_of, records_table, table, verdict
from fractal_lib.benchmark.record import load, names, rows
from fractal_lib.benchmark.registry import CASES


def claim(**given):
    one = {"said": "it is fast", "chapter": "start/ladder", "cases": {"": True}}
    return Claim(**one | {"measured": "3 ms", "seeds": "5 seeds", "instead": "so"} | given)


def test_a_verdict_is_of_all_cases_of_some_or_of_none():
    assert verdict({"": True}) == verdict({"a": True, "b": True}) == "true"
    assert verdict({"": False}) == verdict({"a": False, "b": False}) == "false"
    assert verdict({"a": True, "b": False, "c": True}) == "true if: a; c"


@pytest.mark.parametrize("cases", [{}, {"": 1}, {"": None}, {"a": True, "b": 0.5}])
def test_what_is_no_answer_is_refused(cases):
    with pytest.raises(ValueError, match="expected a bool for each case"):
        verdict(cases)


def test_a_row_says_all_and_leads_to_the_chapter_and_the_record():
    text = table([claim(said="a < b", cases={"x": True, "y": False}, records=("hilbert-cpu",))])
    assert "a &lt; b" in text and 'class="partly"' in text and "<b>true if</b> x<br>3 ms" in text
    assert 'href="../start/ladder.html"' in text and 'href="#record-hilbert-cpu"' in text
    assert "this page" in table([claim()]) and "this page" not in text
    assert 'class="true"' in table([claim()])
    assert 'class="false"' in table([claim(cases={"": False})])


def test_every_record_that_a_claim_names_stands_once_in_the_list():
    claims = [claim(records=("latent-sde/co2-*", "hilbert-cpu")), claim(records=("hilbert-cpu",))]
    text = records_table(claims)
    anchors = re.findall(r'id="record-([^"]+)"', text)
    assert anchors == ["latent-sde-co2-all", "hilbert-cpu"]
    for anchor in re.findall(r'href="#record-([^"]+)"', table(claims)):
        assert anchor in anchors
    assert f"and {len(names('latent-sde/co2-*')) - 1} more" in text
    assert load("hilbert-cpu")["device"] in text
    with pytest.raises(ValueError, match="there is no recorded run 'nothing'"):
        records_table([claim(records=("nothing",))])


@pytest.mark.parametrize("name", names())
def test_the_command_of_a_record_asks_for_its_settings(name):
    python, m, module, run, case, *options = shlex.split(command_of(name))
    assert (python, m, module, run) == ("python", "-m", "fractal_lib.benchmark", "run")
    asked = vars(options_of(CASES[case]).parse_args(options))
    record = load(name)
    given = record | record.get("settings", {})
    if record.get("plan"):
        assert asked["lr"] == record["plan"]["lr"] and asked["steps"] == record["plan"]["steps"]
    for setting in CASES[case].settings.keys() & given.keys() - {"only", "names", "progress"}:
        if setting != "device" or "settings" in record and "device" in record["settings"]:
            was, now = given[setting], asked[setting]
            if setting == "sizes":  # all of them, when the last run added some
                was = sorted({row["n"] for row in rows(record)})
            assert (list(now) if isinstance(now, tuple) else now) == was, setting


def test_every_chapter_that_the_ledger_names_is_there():
    book = Path(__file__).resolve().parents[2] / "book"
    source = (book / "measure" / "claims.ipynb").read_text()
    parts = "|".join(folder.name for folder in book.iterdir() if folder.is_dir())
    named = set(re.findall(rf'\\"((?:{parts})/\w+)\\"', source))
    assert len(named) > 10
    for chapter in named:
        assert (book / f"{chapter}.ipynb").is_file(), chapter
