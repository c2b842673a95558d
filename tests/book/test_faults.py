"""The checks of `faults.py` themselves: a page is spoilt in each way that they should notice."""

import pytest
from built import WITH_SLIDER, opened
from faults import barriers, dead_links, faults, noticed, small_letters

DOT = "const dot = () => document.createElement('canvas').toDataURL()"  # a picture of nothing


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ("document.body.append('so $x^2$ it is')", "raw maths"),
        ("document.body.append('so \\\\(x\\\\) it is')", "raw maths"),
        ("document.querySelector('mjx-container').remove()", "maths not typeset"),
        (
            "document.querySelector('mjx-container').append(document.createElement('mjx-merror'))",
            "maths in error",
        ),
        ("document.querySelector('img').alt = ' '", "without alt text"),
        ("document.querySelector('img').src = '/nowhere.png'", "broken picture"),
        (
            "document.querySelector('.cell_output img').closest('figure').replaceWith("
            "document.querySelector('.cell_output img'))",
            "without a caption",
        ),
        (
            "document.querySelector('.cell_output pre').style.whiteSpace = 'pre'",
            "to be scrolled by",
        ),
        (
            "document.querySelector('.cell_output').style.width = '1000px';"
            "document.querySelector('article').style.overflow = 'hidden'",
            "over the right edge",
        ),
        ("document.querySelector('.cell_output img').src = dot()", "empty frame"),
        (
            "[...document.querySelectorAll('.fractal-explore img[hidden]')].at(-1).src = dot()",
            "empty frame",
        ),
        ("document.querySelector('.cell_output').replaceChildren()", "empty frame"),
        ("document.querySelector('article p').style.width = '2000px'", "px wide in a window"),
        ("console.error('no')", "console: no"),
        ("setTimeout(() => { throw new Error('thrown') })", "script: "),
        ("fetch('/nowhere.html')", "404"),
        ("fetch('https://example.org/').catch(() => 0)", "leaves the machine"),
    ],
)
def test_each_fault_is_noticed(browser, site, spoil, expected):
    with opened(browser, f"{site}/{WITH_SLIDER}") as (page, trouble):
        page.evaluate("() => MathJax.startup.promise")
        page.evaluate(f"() => {{ {DOT}; {spoil} }}")
        assert noticed(lambda: faults(page, trouble), expected)


def test_a_barrier_is_noticed(browser, site):
    with opened(browser, f"{site}/{WITH_SLIDER}") as (page, _):
        page.evaluate(
            "() => document.querySelector('article').insertAdjacentHTML('beforeend', '<input>')"
        )
        assert any(rule == "label" for rule, _ in barriers(page))


@pytest.mark.parametrize("href", ["nowhere.html", "#nowhere", "../start/ladder.html#nowhere"])
def test_a_dead_link_is_noticed(browser, site, href):
    with opened(browser, f"{site}/{WITH_SLIDER}") as (page, _):
        page.evaluate(
            "href => document.querySelector('article').insertAdjacentHTML("
            "'beforeend', `<a href=${href}>so</a>`)",
            href,
        )
        assert len(dead_links(page)) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        "document.querySelector('.cell_output img').style"
        ".setProperty('width', '200px', 'important')",
        "document.querySelector('article').insertAdjacentHTML('beforeend', "
        '\'<svg viewBox="0 0 900 90" width="300"><text y="50" font-size="20">a</text></svg>\')',
    ],
)
def test_small_letters_are_noticed(browser, site, spoil):
    with opened(browser, f"{site}/{WITH_SLIDER}", width=390) as (page, _):
        before = len(small_letters(page))
        page.evaluate(f"() => {{ {spoil} }}")
        assert len(small_letters(page)) == before + 1
