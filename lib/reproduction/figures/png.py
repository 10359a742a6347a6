"""Small PNG files: results are committed, and a gallery is to load quickly."""

import io

from neural_ode.errors import needs

with needs("notebooks"):
    from PIL import Image

__all__ = ["with_palette"]

LARGE = 60_000
"""Bytes from which a picture is made smaller."""


def with_palette(picture: bytes) -> bytes:
    """A PNG file with a palette of 256 colours, if it is large and becomes smaller by that."""
    if len(picture) <= LARGE:
        return picture
    with Image.open(io.BytesIO(picture)) as image:
        reduced = image.convert("RGB").quantize(256)
    found = io.BytesIO()
    reduced.save(found, format="png", optimize=True)
    return min(picture, found.getvalue(), key=len)
