# SPDX-License-Identifier: Apache-2.0
"""Small deterministic pictures, as an OpenAI client would send them."""

from __future__ import annotations

import base64
import io
import random
from functools import cache

#: Width and height in pixels: one, two, three and four tiles of 56.
_SIZES = ((50, 56), (112, 40), (30, 160), (110, 100))


@cache
def data_url(name: int) -> str:
    """A picture of coloured patches as a ``data:`` URL; another name is another picture."""
    from PIL import Image

    rng = random.Random(name)
    patches = Image.new("RGB", (5, 4))
    colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(20)]
    patches.putdata(colours)
    out = io.BytesIO()
    patches.resize(_SIZES[name % len(_SIZES)]).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
