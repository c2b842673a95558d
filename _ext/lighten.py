"""Pages that are quick on a slow line: pictures with a palette.

A chart has few colours: with a palette of 255 it is the same picture at a half of the bytes. It is
kept only where that is so: smaller, and no pixel far from what it was.
"""

import io
from pathlib import Path

HEAVY = 20_000  # bytes from which it is worth the while
FAR = 48  # of 255, in any channel of any pixel


def with_palette(data: bytes) -> bytes:
    """A PNG with a palette, or the same PNG where that would show or would not pay."""
    import numpy as np
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    fewer = picture.quantize(255, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    far = np.abs(np.asarray(picture, int) - np.asarray(fewer.convert("RGB"), int)).max()
    target = io.BytesIO()
    fewer.save(target, "PNG", optimize=True)
    smaller = len(target.getvalue()) < 0.9 * len(data)
    return target.getvalue() if smaller and far <= FAR else data


def lighten(app, error):
    """Rewrite what a build put out (build-finished)."""
    if error or app.builder.format != "html":
        return
    for path in Path(app.outdir, "_images").glob("*.png"):
        if (data := path.read_bytes()) and len(data) > HEAVY:
            path.write_bytes(with_palette(data))


def setup(app):
    """Run at the end."""
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
