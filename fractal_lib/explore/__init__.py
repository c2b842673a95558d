"""One call, one figure with a slider: live in Jupyter and Colab, and still moving in a page without
a kernel.

`explore` draws every frame once, when it is called. What it returns shows itself in two forms at
once: an ipywidgets slider where a kernel is running, and a piece of HTML that needs nothing but
itself: no kernel, no second file, no network. The rendered book takes the HTML.

    explore(draw, level=range(7), alt=lambda level: f"The Cantor set after {level} cuts.")
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fractal_lib.checks import optional
from fractal_lib.explore.page import SCRIPT, STYLE

__all__ = ["Explorer", "explore"]

MOST_FRAMES = 60  # 1 to 2 MB of line drawings in one page
COLOURS = 64  # enough for lines and for a heat map; a fifth of the bytes of full colour


@dataclass(frozen=True)
class Frame:
    """One drawn picture: PNG bytes, its alt text, and its size in CSS pixels."""

    png: bytes
    alt: str
    width: int
    height: int

    def img(self, hidden: bool = False) -> str:
        """The picture as one `<img>` element that carries its own data."""
        data = base64.b64encode(self.png).decode("ascii")
        return (
            f'<img src="data:image/png;base64,{data}" alt="{html.escape(self.alt)}" '
            f'decoding="sync" width="{self.width}" height="{self.height}" '
            f'style="max-width: 100%; height: auto"{" hidden" if hidden else ""}>'
        )


class Explorer:
    """What `explore` returns: the frames, and the two ways to show them.

    Attributes:
        parameters: name of each parameter -> the texts of its values, in the slider's order.
        frames: the drawn `Frame`s, the last parameter running fastest.
        start: for each parameter the number of the value that shows first.
    """

    def __init__(
        self,
        parameters: dict[str, list[str]],
        frames: list[Frame],
        caption: str | None,
        start: dict[str, int] | None = None,
    ):
        self.parameters = parameters
        self.frames = frames
        self.caption = caption
        self.start = dict.fromkeys(parameters, 0) | (start or {})
        self._widget = None

    def __repr__(self) -> str:
        spans = ", ".join(
            f"{name}={texts[0]}..{texts[-1]}" for name, texts in self.parameters.items()
        )
        return f"explore({spans}): {len(self.frames)} frames"

    def _frame(self, settings: list[int]) -> int:
        """The number of the frame for one setting of every slider."""
        k = 0
        for at, texts in zip(settings, self.parameters.values(), strict=True):
            k = k * len(texts) + at
        return k

    def _figcaption(self) -> str:
        return f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""

    def _repr_html_(self) -> str:
        """The static form; without JavaScript it is one frame, its alt text and caption."""
        first = self._frame(list(self.start.values()))
        controls = "\n".join(
            f'<div class="control" hidden><label><span>{html.escape(name)}</span>'
            f'<input type="range" min="0" max="{len(texts) - 1}" step="1" '
            f'value="{self.start[name]}" '
            f'autocomplete="off" aria-label="{html.escape(name)}" '
            f'aria-valuetext="{html.escape(texts[self.start[name]])}" '
            f'data-values="{html.escape(json.dumps(texts))}"></label>'
            f"<output>{html.escape(texts[self.start[name]])}</output></div>"
            for name, texts in self.parameters.items()
        )
        images = "\n".join(frame.img(hidden=k != first) for k, frame in enumerate(self.frames))
        return (
            f'<figure class="fractal-explore">\n<style>{STYLE}</style>\n{images}\n{controls}\n'
            f"{self._figcaption()}\n<script>{SCRIPT}</script>\n</figure>"
        )

    def widget(self):
        """The live form, an `ipywidgets.VBox`; made once, so that two views of it move together.

        Raises:
            ImportError: ipywidgets is not installed.
        """
        if self._widget is None:
            widgets = optional("ipywidgets", "the live slider")
            # widgets.Image knows no alt text, so the picture is an <img> inside widgets.HTML.
            picture = widgets.HTML()
            sliders = [
                widgets.SelectionSlider(
                    options=[(text, k) for k, text in enumerate(texts)],
                    value=self.start[name],
                    description=name,
                    layout=widgets.Layout(width="auto", max_width="45rem"),
                    style={"description_width": "initial"},
                )
                for name, texts in self.parameters.items()
            ]

            def show(change=None):
                at = self._frame([slider.value for slider in sliders])
                picture.value = self.frames[at].img()

            for slider in sliders:
                slider.observe(show, names="value")
            show()
            caption = [widgets.HTML(self._figcaption())] if self.caption else []
            self._widget = widgets.VBox([picture, *sliders, *caption])
        return self._widget

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """Both forms in one output; each front end takes the first that it can show.

        The widget's entry is written here, since ipywidgets 8 would give it through
        `_repr_mimebundle_` and 7 only through `_ipython_display_`; it says the same in both.
        """
        bundle: dict = {"text/plain": repr(self), "text/html": self._repr_html_()}
        try:
            model = self.widget().model_id
        except ImportError:
            return bundle
        bundle["application/vnd.jupyter.widget-view+json"] = {
            "version_major": 2,
            "version_minor": 0,
            "model_id": model,
        }
        return bundle


def explore(
    draw: Callable,
    *,
    alt: str | Callable | None = None,
    caption: str | None = None,
    dpi: float = 144,
    start: dict | None = None,
    **parameters: Iterable,
) -> Explorer:
    """Draw a figure for every value of one or two parameters and put a slider under it.

    Args:
        draw: called as `draw(level=3)`. It makes one figure, through pyplot or returned as a
            matplotlib `Figure`, and must not call `plt.show()`. All its figures should have one
            size, or the page jumps.
        alt: what the picture shows, in words: a string, or a function called like `draw` that
            returns one. A string gets the value added. Without it the caption serves, and without
            that the first line of draw's docstring.
        caption: a sentence below the figure, plain text.
        dpi: pixels per inch; 144 is crisp at the width of a page.
        start: the values that show before a slider is moved, by name (`start={"level": 4}`); the
            first ones by default. Begin with the frame that tells most.
        **parameters: one or two names, each with its values (`level=range(7)`, which is also the
            default).

    Returns:
        An `Explorer`; as the last line of a cell it shows itself.

    Raises:
        ValueError: no values, more than two parameters, more than 60 frames, a start that is not
            among the values, no words for the alt text, or a `draw` that left no figure.
        ImportError: matplotlib or pillow is not installed (the extra ``fractal-lib[plot]``).

    Cost: one call of `draw` per value, and 10 to 40 kB per frame of lines at 7 x 3 inches, all kept
    in the page.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> import matplotlib.pyplot as plt
        >>> def draw(level):
        ...     plt.plot([0, 2**level])
        >>> slider = explore(draw, alt="A line from 0 to 2^level.", level=range(4))
        >>> slider
        explore(level=0..3): 4 frames
        >>> slider.frames[2].alt
        'A line from 0 to 2^level. (level 2)'
        >>> plt.get_fignums()                       # nothing is left to be shown twice
        []
    """
    values = {name: list(span) for name, span in (parameters or {"level": range(7)}).items()}
    if len(values) > 2:
        raise ValueError(
            f"explore takes one or two parameters, got {len(values)}: {', '.join(values)}"
        )
    total = 1
    for name, span in values.items():
        total *= len(span)
        if not span:
            raise ValueError(f"explore needs at least one value of {name}, got none")
    if total > MOST_FRAMES:
        raise ValueError(
            f"explore draws at most {MOST_FRAMES} frames, got {total}: give fewer values"
        )
    begin = {}
    for name, value in (start or {}).items():
        if value not in values.get(name, []):
            raise ValueError(f"explore cannot start at {name} = {value}: no such value")
        begin[_name(name)] = values[name].index(value)
    words = alt or caption or (draw.__doc__ or "").strip().split("\n")[0]
    if not words:
        raise ValueError("explore needs alt text: pass alt=, a caption, or give draw a docstring")

    frames = []
    for point in itertools.product(*values.values()):
        setting = dict(zip(values, point, strict=True))
        text = words(**setting) if callable(words) else f"{words} ({_phrase(setting)})"
        frames.append(_render(draw, setting, text, dpi))
    texts = {_name(name): [_text(v) for v in span] for name, span in values.items()}
    return Explorer(texts, frames, caption, begin)


def _name(parameter: str) -> str:
    return parameter.replace("_", " ")


def _text(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _phrase(setting: dict) -> str:
    return ", ".join(f"{_name(name)} {_text(value)}" for name, value in setting.items())


def _render(draw: Callable, setting: dict, alt: str, dpi: float) -> Frame:
    """Call `draw` once on a fresh figure, keep its picture, and close every figure it opened."""
    plt = optional("matplotlib.pyplot", "explore")
    image = optional("PIL.Image", "explore")
    before = set(plt.get_fignums())
    try:
        with plt.ioff():
            plt.figure()  # so that a draw of plt.plot alone never lands on someone else's figure
            figure = draw(**setting)
            if not isinstance(figure, plt.Figure):
                figure = plt.gcf()  # the last one made
            if not figure.get_children()[1:] or getattr(figure, "number", None) in before:
                raise ValueError(
                    f"draw({_phrase(setting)}) left no figure: let it draw with pyplot or return "
                    "a matplotlib Figure, and not call plt.show()"
                )
            raw = io.BytesIO()
            figure.savefig(raw, format="png", dpi=dpi)
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    raw.seek(0)
    with image.open(raw) as drawn:
        small = drawn.convert("RGB").quantize(COLOURS, dither=image.Dither.NONE)
    png = io.BytesIO()
    small.save(png, "PNG", optimize=True)
    width, height = figure.get_size_inches()
    return Frame(png.getvalue(), alt, round(100 * width), round(100 * height))
