"""Sliders in the built book: they move without a kernel, fit a window, and stand still without
JavaScript."""

import pytest
from built import SLIDING, WITH_SLIDER, opened
from faults import faults

FIGURE = "figure.fractal-explore"
SHOWN = """figure =>
  [...figure.querySelectorAll('img')].filter(i => i.offsetParent).map(i => [i.src, i.alt])"""


# from the top of the picture to the last control
HEIGHT = """figure => [...figure.querySelectorAll('.control')].at(-1).getBoundingClientRect().bottom
  - figure.getBoundingClientRect().top"""


@pytest.mark.parametrize(
    ("name", "width"), [(WITH_SLIDER, 390), *((name, 800) for name in SLIDING)]
)
def test_every_slider_fits_and_moves(browser, site, name, width):
    with opened(browser, f"{site}/{name}", width) as (page, trouble):
        assert faults(page, trouble) == []
        figures = page.locator(FIGURE)
        assert figures.count() >= 1
        for figure in figures.all():
            assert figure.evaluate(HEIGHT) <= page.viewport_size["height"]
            frames = figure.locator("img").count()
            for control in figure.locator("input[type=range]").all():
                steps = int(control.get_attribute("max"))
                control.focus()
                page.keyboard.press("Home")  # it starts where there is most to see
                seen = [figure.evaluate(SHOWN)]
                for _ in range(steps):
                    page.keyboard.press("ArrowRight")
                    seen.append(figure.evaluate(SHOWN))
                assert steps >= 1
                assert steps < frames
                assert all(len(shown) == 1 and shown[0][1].strip() for shown in seen)
                # a new picture at every step
                assert len({shown[0][0] for shown in seen}) == steps + 1
                page.keyboard.press("Home")
                assert figure.evaluate(SHOWN) == seen[0]
                box = control.bounding_box()  # and with the mouse, to the far end
                page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
                assert figure.evaluate(SHOWN) == seen[-1]
                page.keyboard.press("Home")
        assert trouble == []


def test_without_javascript_the_first_frame_and_its_words_are_there(browser, site):
    with opened(browser, f"{site}/{WITH_SLIDER}", javascript=False) as (page, _):
        for figure in page.locator(FIGURE).all():
            shown = [frame for frame in figure.locator("img").all() if frame.is_visible()]
            assert len(shown) == 1
            assert shown[0].get_attribute("alt").strip()
            assert not any(control.is_visible() for control in figure.locator("input").all())
