"""Tiles of the photographs that come with packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from taming.data.custom import CustomTest, CustomTrain
from taming.data.examples.photographs import read_photograph, write_tiles


def test_tiles_for_validation_have_pixels_of_their_own(tmp_path: Path) -> None:
    write_tiles(tmp_path, side=128)
    lists = {part: (tmp_path / f"{part}.txt").read_text().split() for part in ("train", "test")}
    assert all(len(set(names)) == len(names) > 20 for names in lists.values())
    assert len(CustomTrain(128, str(tmp_path / "train.txt"))) == len(lists["train"])
    item = CustomTest(128, str(tmp_path / "test.txt"))[0]
    assert item["image"].shape == (128, 128, 3)
    china = read_photograph("china")  # 640 pixels wide: 480 for training

    def pixels(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.asarray(Image.open(tmp_path / name))

    of_china = {
        part: sorted(name for name in names if "china_whole" in name)
        for part, names in lists.items()
    }
    # 427 rows are 5 tiles, 64 apart; 480 columns are 6, and 160 columns 1.
    assert {part: len(names) for part, names in of_china.items()} == {"train": 30, "test": 5}
    assert (pixels(of_china["train"][-1]) == china[256:384, 320:448]).all()
    assert (pixels(of_china["test"][1]) == china[64:192, 480:608]).all()
    half = np.asarray(Image.fromarray(china).resize((320, 213)))
    assert (pixels("train/china_half_001.png") == half[:128, 64:192]).all()
