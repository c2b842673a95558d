"""The decision page's form in a browser: it says what `choose_reader` says."""

import contextlib
import json
import random

import pytest

from fractal_lib.attention import choose_reader
from fractal_lib.benchmark.choice_form import form_data, form_html
from fractal_lib.benchmark.choices import GAPS, KERNELS, TOLERANCES

SMALL = (100, 1_000, 10_000)  # where the library counts anew; larger ones are the record's
SETTINGS = 200


@pytest.fixture(scope="module")
def page(browser):
    """A page that holds the form and nothing else, and may not reach any address."""
    with contextlib.closing(browser.new_page(viewport={"width": 390, "height": 800})) as opened:
        opened.route("**/*", lambda route: route.abort())
        opened.set_content(f"<!doctype html><html lang='en'><body>{form_html()}</body></html>")
        yield opened


def drawn(seed):
    """A setting, as the form has it."""
    one = random.Random(seed)
    return {
        "kernel": one.choice(["", *KERNELS, *KERNELS]),
        "n": one.choice(SMALL),
        "queries": int(10 ** one.uniform(0, 6)),
        "tolerance": one.choice(TOLERANCES),
        "gap": one.choice((0, *GAPS)),
        "derivative": one.random() < 0.5,
        "irregular": one.random() < 0.25,
        "causal": one.random() < 0.2,
        "noisy": one.random() < 0.5,
    }


def chosen(setting):
    """What the library answers, as the form has it."""
    given = dict(setting)
    kernel = KERNELS.get(given.pop("kernel"))
    choice = choose_reader(kernel, given.pop("n"), **given)
    answer = {"name": choice.name, "reads": choice.reads, "prepared": choice.prepared}
    return answer | {"bound": choice.bound, "why": choice.why, "code": choice.code}


def test_the_form_says_what_the_library_says(page):
    settings = [drawn(seed) for seed in range(SETTINGS)]
    ask = "s => document.querySelector('.fractal-choose').choose(s)"
    readers = set()
    for setting in settings:
        found, expected = page.evaluate(ask, setting), chosen(setting)
        bound = expected.pop("bound")
        same = bound if bound is None else pytest.approx(bound, rel=1e-9)
        assert found["bound"] == same, setting
        assert {key: found[key] for key in expected} == expected, setting
        readers.add(found["name"])
    assert readers == {"dense", "window", "multilevel", "ladder"}  # none goes untested


def test_the_controls_reach_the_rule_by_keyboard_and_the_answer_is_shown(page):
    page.locator("select[name=kernel]").select_option("tail 1/d², 10 rows")
    page.locator("select[name=n]").select_option("10000")
    page.locator("input[name=queries]").fill("1000")
    page.locator("input[name=noisy]").focus()
    page.keyboard.press("Space")
    setting = page.evaluate("document.querySelector('.fractal-choose').setting()")
    assert setting["kernel"] == "tail 1/d², 10 rows" and setting["noisy"] is True
    assert setting["queries"] == 1000 and setting["n"] == 10_000
    answer, expected = page.locator("[data-answer]"), chosen(setting)
    said = dict(
        zip(
            answer.evaluate_all("all => all.map(e => e.dataset.answer)"),
            answer.all_text_contents(),
            strict=True,
        )
    )
    assert said["code"] == expected["code"] and said["reads"] == f"{expected['reads']:,}"
    assert said["bytes"] == f"{256 * expected['reads']:,}"
    assert float(said["bound"]) == pytest.approx(expected["bound"], rel=0.06)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


def test_the_lines_that_it_prints_make_the_reader():
    for seed in range(40):
        setting = drawn(seed)
        names: dict = {}
        exec(chosen(setting)["code"], names)
        given = {key: setting[key] for key in setting if key not in ("kernel", "n")}
        choice = choose_reader(KERNELS.get(setting["kernel"]), setting["n"], **given)
        assert repr(names["attention"]) == repr(choice.make())


def test_every_control_has_a_label_and_the_data_are_finite():
    text = form_html()
    assert text.count("<label") == text.count("<select") + text.count("<input") == 9
    assert "NaN" not in json.dumps(form_data()) and "Infinity" not in json.dumps(form_data())
