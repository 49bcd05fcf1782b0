"""The font of texts in pictures."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
OTHER = "mpl-data/fonts/ttf/DejaVuSans.ttf"  # within matplotlib


def font_for(text: str, size: int) -> Font:
    """Pillow's own font, which has little beside the letters of English; for texts with others
    matplotlib's, with those of some 70 languages, where it is installed."""
    if text.isascii() or (file := _other_font()) is None:
        return ImageFont.load_default(size=size)
    return ImageFont.truetype(file, size)


@cache
def _other_font() -> Path | None:
    found = find_spec("matplotlib")
    file = Path(found.origin).parent / OTHER if found and found.origin else None
    return file if file is not None and file.is_file() else None


def shortened(text: str, width: float, font: Font) -> str:
    """The text, without its middle if it is wider than `width` pixels."""
    keep, shown = len(text), text
    while keep > 2 and font.getlength(shown) > width:
        keep -= 1
        shown = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return shown
