"""Files of a few bytes that claim to be images of gigabytes: one sentence, or left out."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taming.data.base import ImageFiles, ImagePaths, NumpyPaths
from taming.data.columns import StringTable
from taming.data.condition_maps import Depth, ImageMap, Labels, MapKind
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.loading import set_loading
from taming.data.options import ImageOptions
from taming.data.shards import Shards
from taming.data.tools.shard_writer import write_shards
from taming.errors import UserError
from tests.kit.images import ramps, write_image

SIDE = 60_000
CLAIM = "claims to have more than 178,956,970 pixels, which would fill the memory; replace the file"
MODES = {"L": 0, "RGB": 2, "RGBA": 6}  # PNG's numbers


def png(mode: str) -> bytes:
    """A PNG whose header says 60,000 x 60,000."""
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, MODES[mode], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10_000))), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg() -> bytes:
    """A small JPEG with the same claim in its frame header."""
    raw = io.BytesIO()
    Image.fromarray(ramps(24, 32)).save(raw, "JPEG")
    content = bytearray(raw.getvalue())
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = struct.pack(">HH", SIDE, SIDE)
    return bytes(content)


def npy(side: int = SIDE) -> bytes:
    """The header of an array."""
    raw = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (1, 3, side, side)}
    np.lib.format.write_array_header_1_0(raw, shape)
    return raw.getvalue() + bytes(100)


def good(folder: Path, ending: str) -> str:
    if ending != "npy":
        return write_image(folder / f"good.{ending}")
    np.save(folder / "good.npy", ramps(24, 32).transpose(2, 0, 1)[None])
    return str(folder / "good.npy")


def pairs(kind: MapKind, good_mode: str) -> Callable[..., ImageFiles]:
    """Two good images, the first of which has the bomb for a map."""

    def build(paths: list[str], **options: Any) -> ImageFiles:
        images = [write_image(Path(paths[0]).parent / f"{i}.png") for i in range(2)]
        shape = (24, 32, 4) if good_mode == "RGBA" else (24, 32)
        Image.fromarray(np.zeros(shape, np.uint8)).save(paths[1])
        maps = {"map": MapFiles(StringTable(paths), kind)}
        return ImagesWithMaps(images, maps, ImageOptions(16, **options))

    return build


@pytest.mark.parametrize(
    ("bomb", "ending", "build"),
    [
        (png("RGB"), "png", ImagePaths),
        (jpeg(), "jpg", ImagePaths),
        (npy(), "npy", NumpyPaths),
        (npy(10**12), "npy", NumpyPaths),
        (png("L"), "png", pairs(Labels(3), "L")),
        (png("RGBA"), "png", pairs(Depth(), "RGBA")),
        (png("RGB"), "png", pairs(ImageMap(), "L")),
    ],
    ids=["png", "jpeg", "npy", "huge npy", "labels", "depth", "image map"],
)
def test_bombs_are_found_at_start_or_left_out(
    bomb: bytes,
    ending: str,
    build: Callable[..., ImageFiles],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    paths = [str(tmp_path / f"bomb.{ending}"), good(tmp_path, ending)]
    Path(paths[0]).write_bytes(bomb)
    with pytest.raises(UserError, match=f"^{paths[0]}, from .*, {CLAIM}") as caught:
        build(paths)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        data = build(paths, on_error="skip")
    assert "1 of the 2 files looked at cannot be used" in caplog.text and "bomb" in caplog.text
    np.testing.assert_array_equal(data[0]["image"], data[1]["image"])
    assert "skipped: " in caplog.text


def test_the_fast_decoder_looks_first(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg")
    data = ImagePaths([path])
    set_loading(data, fast_decode=True, image_bytes=True)
    Path(path).write_bytes(jpeg())
    with pytest.raises(UserError, match=CLAIM):
        data[0]


def test_a_file_that_really_is_so_large(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy())
    with open(path, "r+b") as file:
        file.truncate(128 + 3 * SIDE * SIDE)  # takes no room on the disk
    with pytest.raises(UserError, match=CLAIM):
        NumpyPaths([str(path)])


@pytest.mark.parametrize("ending", ["png", "npy"])
def test_bombs_in_shards(ending: str, tmp_path: Path) -> None:
    path, reader = good(tmp_path, ending), NumpyPaths if ending == "npy" else ImagePaths
    dataset = reader([path], 16)
    bomb = npy() if ending == "npy" else png("RGB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taming.data.tools.shard_writer.read_bytes", lambda path: bomb)
        write_shards(dataset, tmp_path / "out", 10)
    with pytest.raises(UserError, match=f"shard-000000.tar::.*, from Shards of .*, {CLAIM}"):
        Shards(str(tmp_path / "out"), 16)
