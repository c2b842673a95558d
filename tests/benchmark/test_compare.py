"""`compare` says what moved, what did not, and what cannot be judged."""

import copy
import json

import pytest

from fractal_lib.benchmark.__main__ import main
from fractal_lib.benchmark.compare import compare
from fractal_lib.benchmark.record import load, names


def test_a_time_has_moved_by_more_than_the_larger_of_the_two_ranges():
    old = {"rows": [{"n": n, "method": "m", "seconds": 1.0, "iqr": 0.1} for n in (1, 2, 3)]}
    new = copy.deepcopy(old)
    new["rows"][0]["seconds"] = 1.11
    new["rows"][1]["seconds"] = 1.09
    new["rows"][2] |= {"seconds": 1.3, "iqr": 0.4}
    assert compare(old, new) == [
        "3 rows in both records",
        "moved by more than the spread (1 of 3):",
        "  method = m, n = 1: seconds 1 -> 1.11 (+11.0 %, spread 0.1)",
    ]
    assert "(-9.9 %, spread 0.1)" in compare(new, old)[2]


@pytest.mark.parametrize(
    ("row", "key", "spread"),
    [
        ({"seconds": 2.0, "quartiles": [1.5, 2.25]}, "seconds", 0.75),
        ({"encode": 2.0, "encode_iqr": 0.5}, "encode", 0.5),
        ({"negative_elbo": 2.0, "standard_error": 0.25}, "negative_elbo", 0.25),
        ({"report": {"negative_elbo": 2.0, "standard_error": 0.25}}, "negative_elbo", 0.25),
        ({"negative_elbo": [1.0, 3.0]}, "negative_elbo", 1.0),  # sd 2^.5 over 2^.5
    ],
)
def test_every_kind_of_spread_is_found(row, key, spread):
    for factor, moved in ((0.99, False), (1.01, True)):
        new = copy.deepcopy(row)
        where = new["report"] if "report" in new else new
        if isinstance(where[key], list):
            where[key] = [v + factor * spread for v in where[key]]
        else:
            where[key] += factor * spread
        lines = compare({"rows": [row]}, {"rows": [new]})
        assert lines[1].endswith("(1 of 1):" if moved else "(0 of 1)"), lines
        assert not any("no spread" in line for line in lines)


def test_what_has_no_spread_is_said_and_not_judged():
    old = {"rows": [{"n": 1, "error": 0.5, "cpu_s": 3.0, "report": {"year": {"rmse": 1.0}}}]}
    new = copy.deepcopy(old)
    new["rows"][0]["report"]["year"]["rmse"] = 1.5
    assert compare(old, new)[1:] == [
        "moved by more than the spread (0 of 0)",
        "changed, and no spread is recorded to judge by (1 of 3):",
        "  n = 1: report.year.rmse 1 -> 1.5 (+50.0 %)",
    ]


def test_rows_that_only_one_has_are_named():
    old, new = ({"rows": [{"n": n, "seconds": 1.0, "iqr": 0.1}]} for n in (1, 2))
    assert compare(old, new)[:3] == [
        "0 rows in both records",
        "only in the old record: n = 1",
        "only in the new record: n = 2",
    ]
    with pytest.raises(ValueError, match="two rows of one record are n = 1"):
        compare({"rows": old["rows"] * 2}, new)


@pytest.mark.parametrize("name", names())
def test_every_record_is_comparable_and_equal_to_itself(name):
    lines = compare(load(name), load(name))
    assert "0 of" in lines[1] and not any("->" in line for line in lines)


def test_the_command(tmp_path, capsys):
    record = load("heads-cpu")
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(record))
    record["rows"][0]["seconds"] *= 2
    two.write_text(json.dumps(record))
    main(["compare", str(one), str(two)])
    told = capsys.readouterr().out
    assert "moved by more than the spread (1 of 160):" in told and "(+100.0 %, spread" in told
    for text, sentence in (("{", "is not JSON"), ("[]", "is not a record of this benchmark")):
        two.write_text(text)
        with pytest.raises(SystemExit) as stop:
            main(["compare", str(one), str(two)])
        assert stop.value.code == 2 and sentence in capsys.readouterr().err
