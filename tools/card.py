"""Draw the picture of a social card: the logo, the title, the first page's question, a ladder.

    python tools/card.py        writes _static/card.png anew, 1200 x 630

It needs Chromium (`CHROMIUM`, or in the path), playwright and pillow, which `make` installs. The
picture is stored, since a build must not need a browser: run it after the title or the logo has
changed. `_ext/page_meta.py` names the picture in every page's head, once there is an address.
"""

import io
import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "_static" / "card.png"
SIZE = 1200, 630
QUERY = 0.42  # where the ladder is asked, as a share of its width
COLOURS = 128

PAGE = """<!doctype html><html><style>
  body {{ margin: 0; width: {width}px; height: {height}px; background: #fdfcf9; color: #1d2129;
    font-family: "DejaVu Sans", Verdana, sans-serif; position: relative; overflow: hidden; }}
  .logo {{ position: absolute; left: 70px; top: 80px; width: 310px; }}
  h1 {{ position: absolute; left: 440px; top: 64px; margin: 0; font-size: 70px; }}
  p {{ position: absolute; left: 440px; top: 180px; width: 690px; margin: 0; font-size: 36px;
    line-height: 1.35; color: #4a5160; }}
  .ladder {{ position: absolute; left: 70px; bottom: 34px; }}
</style><div class="logo">{logo}</div><h1>{title}</h1><p>{question}</p>{ladder}</html>"""


def ladder(width: int = 1060, height: int = 200, levels: int = 5) -> str:
    """An SVG: a grid of points a level, the four around the query filled on each."""
    query, parts = QUERY * width, []
    for level in range(levels):
        y = height - 14 - level * (height - 28) / (levels - 1)
        step = width / 64 * 2**level
        nearest = sorted(range(-2, 70), key=lambda j: abs(j * step - query))[:4]
        for j in range(int(width / step) + 1):
            read = j in nearest
            parts.append(
                f'<circle cx="{j * step:.1f}" cy="{y:.1f}" r="{9 if read else 3}" '
                f'fill="{"#0868b0" if read else "#c9ccd1"}"/>'
            )
    line = f'<path d="M{query:.1f} 0 V{height}" stroke="#d40f2f" stroke-width="3"/>'
    return (
        f'<svg class="ladder" width="{width}" height="{height}" overflow="visible">'
        f"{line}{''.join(parts)}</svg>"
    )


def page(root: Path = ROOT) -> str:
    """The card as HTML, from the book's own title, first heading and logo."""
    title = re.findall(r"^title: (.+)$", (root / "_config.yml").read_text(), re.M)[0]
    question = re.findall(r"^# (.+)$", (root / "book/index.md").read_text(), re.M)[0]
    logo = (root / "book/images/logo.svg").read_text()
    logo = re.sub(r' width="\d+" height="\d+"', ' width="310"', logo, count=1)
    return PAGE.format(
        width=SIZE[0], height=SIZE[1], logo=logo, title=title, question=question, ladder=ladder()
    )


def draw(target: Path = CARD) -> None:
    """Photograph the card in Chromium, and store it with a palette."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        sheet = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        sheet.set_content(page())
        png = sheet.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)


if __name__ == "__main__":
    draw()
