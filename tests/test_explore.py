"""The slider: one object with two forms, which must show the same frames with the same words."""

import io
import os
import shutil
import sys
from html.parser import HTMLParser

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fractal_lib.explore import explore
from fractal_lib.plots import use_style

mpl.use("agg")
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True)
def _clean():
    with mpl.rc_context():
        use_style()
        yield
    plt.close("all")


def lines(level):
    """Waves."""
    _, ax = plt.subplots()
    x = np.linspace(0, 1, 300)
    ax.plot(x, np.sin(2 * np.pi * (level + 1) * x))
    ax.set(xlabel="t", ylabel="value")


def bars(height, at):
    _, ax = plt.subplots(figsize=(3, 2))
    ax.bar(at, height)
    ax.set(xlim=(0, 5), ylim=(0, 5))


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def __getitem__(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_static_form_has_every_frame_and_shows_the_first():
    slider = explore(
        lines, alt=lambda level: f"{level + 1} waves", caption="<b>Waves</b> & more", level=range(7)
    )
    tags = Tags(slider._repr_html_())
    images, (control,) = tags["img"], tags["input"]
    assert [image["alt"] for image in images] == [f"{k + 1} waves" for k in range(7)]
    assert ["hidden" in image for image in images] == [False] + 6 * [True]
    assert len({image["src"] for image in images}) == 7
    assert (control["type"], control["min"], control["max"]) == ("range", "0", "6")
    assert control["aria-label"] == "level"
    assert control["aria-valuetext"] == "0"
    assert "<figcaption>&lt;b&gt;Waves&lt;/b&gt; &amp; more</figcaption>" in slider._repr_html_()
    # may stand in a page any number of times, and asks nothing of the network
    assert not any("id" in attrs for _, attrs in tags.found)
    assert "http" not in slider._repr_html_()


def test_a_slider_starts_where_it_is_told():
    slider = explore(bars, alt="bars", height=[1, 2.5], at=range(1, 4), start={"at": 3})
    tags = Tags(slider._repr_html_())
    assert ["hidden" in image for image in tags["img"]] == [True, True, False, True, True, True]
    assert [control["value"] for control in tags["input"]] == ["0", "2"]
    assert [control["aria-valuetext"] for control in tags["input"]] == ["1", "3"]
    picture, height, at = slider.widget().children
    assert (height.value, at.value) == (0, 2)
    assert picture.value == slider.frames[2].img()
    for wrong in ({"at": 4}, {"width": 1}):
        with pytest.raises(ValueError, match="cannot start"):
            explore(bars, alt="bars", height=[1], at=range(1, 4), start=wrong)


def test_seven_frames_of_lines_are_small_and_look_as_drawn():
    slider = explore(lines, level=range(7))
    assert len(slider._repr_html_()) < 180_000
    explored = pixels(slider.frames[2].png)
    lines(2)
    raw = io.BytesIO()
    plt.savefig(raw, dpi=144)
    assert np.abs(explored - pixels(raw.getvalue())).mean() < 0.5  # of 255


def test_live_form_shows_the_same_frames():
    slider = explore(lines, alt=lambda level: f"{level + 1} waves", caption="Waves", level=range(3))
    bundle = slider._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", WIDGET}
    box = slider.widget()
    assert (
        bundle[WIDGET]["model_id"] == box.model_id == slider._repr_mimebundle_()[WIDGET]["model_id"]
    )
    picture, control, caption = box.children
    assert control.description == "level"
    assert "Waves" in caption.value
    for k in (2, 0, 1):
        control.value = k
        assert control.label == str(k)
        assert picture.value == slider.frames[k].img()


def test_without_ipywidgets_the_static_form_is_left(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert set(explore(lines, level=range(2))._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_two_parameters_run_over_their_grid():
    slider = explore(
        bars, alt=lambda height, at: f"{height:g} high at {at}", height=[1, 2.5], at=range(1, 4)
    )
    assert [frame.alt for frame in slider.frames] == [
        f"{h:g} high at {a}" for h in (1, 2.5) for a in (1, 2, 3)
    ]
    _, first, second = slider.widget().children
    first.value, second.value = 1, 2
    assert "2.5 high at 3" in slider.widget().children[0].value
    assert repr(slider) == "explore(height=1..2.5, at=1..3): 6 frames"


def test_a_string_for_alt_is_completed_by_the_value():
    assert (
        explore(bars, alt="A bar.", height=[0.5], at=[2]).frames[0].alt
        == "A bar. (height 0.5, at 2)"
    )
    assert explore(lines, caption="Some waves", level=[3]).frames[0].alt == "Some waves (level 3)"
    assert explore(lines, level=[3]).frames[0].alt == "Waves. (level 3)"


def test_it_leaves_no_figure_open_and_other_figures_alone():
    mine, ax = plt.subplots()
    slider = explore(lambda level: plt.plot([0, level]), alt="A line.", level=range(2))
    assert plt.get_fignums() == [mine.number]
    assert plt.gcf() is mine
    assert ax.lines[:] == []
    assert slider.frames[0].png != slider.frames[1].png


def test_a_figure_may_be_returned():
    def draw(level):
        figure = Figure(figsize=(4, 1))
        figure.subplots().plot([0, level])
        return figure

    frame = explore(draw, alt="A line.", level=[1]).frames[0]
    assert (frame.width, frame.height) == (400, 100)
    assert pixels(frame.png).shape == (144, 576, 3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="one or two parameters, got 3: a, b, c"):
        explore(lines, a=[1], b=[1], c=[1])
    with pytest.raises(ValueError, match="at least one value of level"):
        explore(lines, level=[])
    with pytest.raises(ValueError, match="at most 60 frames, got 61"):
        explore(lines, level=range(61))
    with pytest.raises(ValueError, match="alt text"):
        explore(bars, height=[1], at=[1])
    with pytest.raises(ValueError, match=r"draw\(level 0\) left no figure"):
        explore(lambda level: None, alt="Nothing.")
    assert plt.get_fignums() == []


CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_several_sliders_in_one_page_move_each_on_its_own():
    from playwright.sync_api import sync_playwright

    one = explore(lines, alt=lambda level: f"waves {level}", level=range(3))
    two = explore(bars, alt=lambda height, at: f"bar {height} {at}", height=[1, 2], at=range(3))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.set_content(
            "<p>before</p>" + one._repr_html_() + two._repr_html_() + one._repr_html_()
        )

        def shown():
            return page.evaluate(
                "[...document.querySelectorAll('img')].filter(i => i.offsetParent).map(i => i.alt)"
            )

        controls = page.locator("input")
        assert shown() == ["waves 0", "bar 1 0", "waves 0"]
        controls.nth(0).press("End")
        assert shown() == ["waves 2", "bar 1 0", "waves 0"]
        controls.nth(1).press("ArrowRight")
        controls.nth(2).press("ArrowRight")
        assert shown() == ["waves 2", "bar 2 1", "waves 0"]
        assert controls.nth(2).get_attribute("aria-valuetext") == "1"
        assert page.locator("output").all_inner_texts() == ["2", "2", "1", "0"]
        browser.close()
