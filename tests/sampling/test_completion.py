from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from taming.errors import UserError
from taming.pictures import Placed
from taming.sampling.completion import changed_mask, keep_mask, known_indices
from tests.kit.models import tiny_model


@pytest.mark.parametrize(
    ("keep", "rows", "columns"),
    [
        ("top-half", range(2), range(5)),
        ("bottom-half", range(2, 4), range(5)),
        ("left-half", range(4), range(2)),
        ("right-half", range(4), range(2, 5)),
        ("2,0,8,4", range(2), range(1, 4)),
        ("1,1,7,7", range(1, 3), range(1, 3)),
    ],
)
def test_halves_and_boxes(keep: str, rows: range, columns: range) -> None:
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[rows.start : rows.stop, columns.start : columns.stop] = True
    assert torch.equal(keep_mask(keep, Placed.whole((8, 10)), 2), expected)


def test_boxes_are_in_pixels_of_the_image_before_it_was_reduced() -> None:
    placed = replace(Placed.reduced((16, 24), (8, 8)), size=(8, 8))  # by 2, and the right cut off

    def kept(keep: str) -> Tensor:
        return keep_mask(keep, placed, 2)

    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:, :2] = True
    assert torch.equal(kept("0,0,8,16"), expected)
    assert torch.equal(kept("0,0,11,16"), expected)  # only pixels that are kept as a whole
    assert torch.equal(kept("8,0,24,16"), ~expected)


def test_boxes_of_an_image_that_was_only_cut_are_not_scaled() -> None:
    cut = replace(Placed.whole((271, 271)), size=(256, 256))

    def columns(keep: str) -> list[bool]:
        return keep_mask(keep, cut, 16)[0].tolist()

    assert columns("0,0,128,271") == [True] * 8 + [False] * 8
    assert columns("16,0,271,271") == [False] + [True] * 15
    tokens, pixels = changed_mask("128,0,271,271", cut, 16)
    assert pixels[0].tolist() == [False] * 128 + [True] * 128
    assert tokens[0].tolist() == [False] * 8 + [True] * 8
    reduced = keep_mask("0,0,136,272", Placed.reduced((272, 272), (256, 256)), 16)
    assert reduced[0].tolist() == [True] * 8 + [False] * 8


def test_boxes_and_masks_of_an_image_at_a_given_size_are_its_own(tmp_path: Path) -> None:
    """Reduced by it, enlarged, and cut off at both ends."""
    reduced = Placed.covering((512, 512), (256, 256))
    left = keep_mask("0,0,128,512", reduced, 16)  # a quarter
    assert left.all(0).tolist() == left.any(0).tolist() == [True] * 4 + [False] * 12
    with pytest.raises(UserError, match="not inside of the image, 0,0,512,512 in its own pixels"):
        keep_mask("0,0,128,513", reduced, 16)
    enlarged = Placed.covering((64, 64), (256, 256))
    assert torch.equal(keep_mask("0,0,64,32", enlarged, 16), keep_mask("top-half", enlarged, 16))
    middle = Placed.covering((512, 256), (256, 256))  # of 512 rows, those from 128 to 384
    for size, rows in (((512, 256), 192), ((256, 256), 64)):  # a file of either size
        mask = np.zeros(size, np.uint8)
        mask[:rows] = 255
        Image.fromarray(mask).save(tmp_path / "mask.png")
        kept = keep_mask(str(tmp_path / "mask.png"), middle, 16)
        assert kept[:, 0].tolist() == [True] * 4 + [False] * 12
        _, changed = changed_mask(str(tmp_path / "mask.png"), middle, 16)
        assert int(changed[:, 0].sum()) == 64 and changed[:64].all()
    with pytest.raises(UserError, match="own 256 x 512 pixels, not 256 x 256; keep more"):
        keep_mask("0,0,256,128", middle, 16)
    with pytest.raises(UserError, match="own 256 x 512 pixels, not 256 x 256, so that nothing"):
        changed_mask("0,0,256,128", middle, 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_in_a_mask_is_not_kept(tmp_path: Path, mode: str) -> None:
    values = np.full((8, 8), 255, dtype=np.uint8)
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[:, :4] = 255
    if mode == "P":
        image, options = Image.fromarray(alpha // 255).convert("P"), {"transparency": 0}
        image.putpalette([255] * 768)
    else:
        image, options = Image.fromarray(values).convert(mode), {}
        image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "mask.png", **options)
    kept = keep_mask(str(tmp_path / "mask.png"), Placed.whole((8, 8)), 2)
    assert kept.tolist() == [[True, True, False, False]] * 4


def test_masks_of_16_bits_have_their_own_white(tmp_path: Path) -> None:
    values = np.zeros((8, 8), dtype=np.uint16)
    values[:, :4] = 65535
    Image.fromarray(values).save(tmp_path / "mask.png")
    kept = keep_mask(str(tmp_path / "mask.png"), Placed.whole((8, 8)), 2)
    assert kept.tolist() == [[True, True, False, False]] * 4
    Image.fromarray(np.full((8, 8), 300, dtype=np.uint16)).save(tmp_path / "dark.png")
    with pytest.raises(UserError, match="keeps no whole patch"):
        keep_mask(str(tmp_path / "dark.png"), Placed.whole((8, 8)), 2)


def test_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((8, 8), np.uint8)
    values[:4, :3] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    kept = keep_mask(str(tmp_path / "mask.png"), Placed.whole((8, 8)), 2)
    assert kept.nonzero().tolist() == [[0, 0], [1, 0]]
    with pytest.raises(UserError, match="--keep takes top-half"):
        keep_mask(str(tmp_path / "mask.png"), Placed.whole((8, 8)), 2, read_files=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask.png").rename("top-half")  # a file goes before a word
    assert torch.equal(keep_mask("top-half", Placed.whole((8, 8)), 2), kept)
    assert not torch.equal(keep_mask("top-half", Placed.whole((8, 8)), 2, read_files=False), kept)
    (tmp_path / "top-half").rename("mask.png")
    with pytest.raises(UserError, match="8 x 8 pixels, the image 10 x 8"):
        keep_mask(str(tmp_path / "mask.png"), Placed.whole((8, 10)), 2)
    Image.fromarray(values // 255 * (224 - 31) + 31).save(tmp_path / "pale.png")
    assert torch.equal(keep_mask(str(tmp_path / "pale.png"), Placed.whole((8, 8)), 2), kept)
    for black, white in ((0, 223), (32, 255), (0, 127)):
        gray = values // 255 * (white - black) + black
        Image.fromarray(gray.astype(np.uint8)).save(tmp_path / "gray.png")
        with pytest.raises(UserError, match="it has grays"):
            keep_mask(str(tmp_path / "gray.png"), Placed.whole((8, 8)), 2)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="is no image"):
        keep_mask(str(tmp_path / "text.png"), Placed.whole((8, 8)), 2)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("half", "--keep takes top-half"),
        ("1,2,3", "--keep takes top-half"),
        ("4,0,2,8", "not inside"),
        ("4,0,4,8", "not inside"),
        ("4,8,8,8", "not inside"),
        ("0,0,8,9", "not inside"),
        ("0,0,9,8", "not inside"),
        ("0,0,1,1", "keeps no whole patch of 2 x 2 pixels; keep more of the image"),
        ("0,0,8,8", "nothing to sample; keep less of it"),
    ],
)
def test_wrong_parts(keep: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        keep_mask(keep, Placed.whole((8, 8)), 2)


def test_known_indices() -> None:
    model = tiny_model()
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    indices = model.first_stage_model.encode_to_indices(picture)[0]
    assert torch.equal(known_indices(model, picture), indices)
    keep = keep_mask("left-half", Placed.whole((8, 8)), 2)
    known = known_indices(model, picture, keep, pad=(1, 0, 2, 3))
    assert known.shape == (7, 7)
    assert torch.equal(known[:4, 1:3], indices[:, :2])
    assert int((known >= 0).sum()) == 8
