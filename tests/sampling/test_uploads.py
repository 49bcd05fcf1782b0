from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from taming.errors import UserError
from taming.sampling.uploads import require_pixels, stored


class Upload:
    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content = name, content

    def getvalue(self) -> bytes:
        return self.content


def png(width: int, height: int) -> bytes:
    raw = io.BytesIO()
    Image.new("1", (width, height)).save(raw, "PNG")
    return raw.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "../../x.png",
        "/etc/x.png",
        "..",
        "",
        ".bashrc",
        "a\\..\\x.png",
        "x\0.png",
        "x" * 999 + ".png",
        "." + "x" * 300,
    ],
)
def test_uploads_stay_in_their_folder(name: str) -> None:
    with stored(Upload(name, png(4, 4))) as (path,):
        folder = Path(path).parent
        assert folder.name == "0" and Path(path).read_bytes() == png(4, 4)
        assert Path(path).resolve().parent == folder.resolve()
    assert not folder.exists()


def test_two_uploads_of_one_name_are_two_files() -> None:
    uploads = (Upload("a.png", png(4, 4)), None, Upload("a.png", png(8, 8)))
    with stored(*uploads) as (first, nothing, second):
        assert nothing is None and first is not None and second is not None
        assert (Path(first).name, Path(second).name) == ("a.png", "a.png")
        assert [Path(path).read_bytes() for path in (first, second)] == [png(4, 4), png(8, 8)]


def test_uploads_are_bounded() -> None:
    for content, words in (
        (bytes(20 * 2**20 + 1), "^a.PNG has more than 20 MiB"),
        (png(5001, 5000), "^a.PNG has 5001 x 5000 pixels; 25,000,000 are allowed"),
        (b"GIF", "^a.PNG is no image that Pillow can read; give an image file"),
    ):
        with pytest.raises(UserError, match=words):
            with stored(None, Upload("a.PNG", content)):
                raise AssertionError("it was stored")
    require_pixels(5000, 5000, "what is allowed")
