from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taming.data.base import ImagePaths
from taming.data.shards import Shards
from taming.data.tools.shard_writer import write_shards
from taming.errors import UserError
from tests.kit.images import truncate, write_images


def test_an_interrupted_call_goes_on(tmp_path: Path) -> None:
    dataset = ImagePaths(write_images(tmp_path / "in", 5), 16)
    write_shards(dataset, tmp_path / "out", 2)
    tars = sorted((tmp_path / "out").glob("*.tar"))
    before = [tar.read_bytes() for tar in tars]
    tars[1].unlink()
    (tmp_path / "out/.shard-000001.tar.1.partial").write_bytes(b"cut short")
    write_shards(dataset, tmp_path / "out", 2)
    assert [tar.read_bytes() for tar in tars] == before and len(tars) == 3
    fewer = ImagePaths(list(dataset.paths)[:4], 16)
    for data, per_shard in ((dataset, 3), (fewer, 2)):
        with pytest.raises(UserError, match="another size; give an empty folder"):
            write_shards(data, tmp_path / "out", per_shard)
    shutil.copyfile(dataset.paths[1], dataset.paths[0])  # another image of that name
    with pytest.raises(UserError, match="shards of other data"):
        write_shards(dataset, tmp_path / "out", 2)


def test_folders_of_earlier_versions_go_on(tmp_path: Path) -> None:
    """Their description has no `exif`, which was ignored, no `value_range` and no `files`."""
    dataset = ImagePaths(write_images(tmp_path / "in", 2), 16, exif="ignore")
    write_shards(dataset, tmp_path / "out", 2)
    file = tmp_path / "out/shards.json"
    content = json.loads(file.read_text())
    del content["exif"], content["value_range"], content["files"]
    file.write_text(json.dumps(content))
    assert Shards(str(tmp_path / "out")).options.exif == "ignore"
    assert write_shards(dataset, tmp_path / "out", 2) == 2


def test_bad_files_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_images(tmp_path / "in", 4)
    dataset = ImagePaths(paths, 16, labels={"class_label": range(4)}, on_error="skip")
    truncate(paths[1], 0.01)
    with pytest.raises(UserError, match="001.png"):
        write_shards(dataset, tmp_path / "strict", 10)
    assert write_shards(dataset, tmp_path / "out", 10, skip_bad=True) == 3
    assert "skipped: " in caplog.text and "001.png" in caplog.text
    sharded = Shards(str(tmp_path / "out"), 16)
    assert [sharded[i]["class_label"] for i in range(3)] == [0, 2, 3]
    assert sharded[1]["file_path_"] == paths[2]


def test_a_call_that_goes_on_counts_all_samples(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 5)
    dataset = ImagePaths(paths, 16, on_error="skip")
    for number in (0, 3):
        truncate(paths[number], 0.01)
    assert write_shards(dataset, tmp_path / "out", 2, skip_bad=True) == 3
    (tmp_path / "out/shard-000001.tar").unlink()
    for _ in range(2):
        assert write_shards(dataset, tmp_path / "out", 2, skip_bad=True) == 3


def test_the_range_of_values_stays(tmp_path: Path) -> None:
    deep = np.full((16, 16), 2000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    dataset = ImagePaths([str(tmp_path / "a.png")], 16, value_range=(0, 4000))
    for _ in range(2):
        write_shards(dataset, tmp_path / "out", 2)
    assert np.abs(dataset[0]["image"]).max() < 0.01
    image = Shards(str(tmp_path / "out"), 16)[0]["image"]
    np.testing.assert_array_equal(image, dataset[0]["image"])
    assert Shards(str(tmp_path / "out"), 16, value_range=[0, 2000])[0]["image"].min() == 1
    other = ImagePaths([str(tmp_path / "a.png")], 16)
    with pytest.raises(UserError, match="shards of other data"):
        write_shards(other, tmp_path / "out", 2)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"maps": [], "interpolation": "area"}',
        b'{"maps": {"a": 3}, "interpolation": "area"}',
        b'{"maps": {}, "interpolation": 3}',
        b'{"maps": {}, "interpolation": "area", "value_range": 3}',
    ],
)
def test_damaged_descriptions_are_named(tmp_path: Path, content: bytes) -> None:
    dataset = ImagePaths(write_images(tmp_path / "in", 1), 16)
    write_shards(dataset, tmp_path / "out", 1)
    (tmp_path / "out/shards.json").write_bytes(content)
    with pytest.raises(UserError, match="shards.json cannot be read .*; write the shards anew"):
        write_shards(dataset, tmp_path / "out", 1)
    with pytest.raises(UserError, match="shards.json cannot be read"):
        Shards(str(tmp_path / "out"), 16)


def test_files_that_vanish_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImagePaths(write_images(tmp_path / "in", 2), 16)

    def vanished(path: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("taming.data.tools.shard_writer.read_bytes", vanished)
    with pytest.raises(UserError, match="000.png cannot be read .*No such file"):
        write_shards(dataset, tmp_path / "out", 2)
    assert not list((tmp_path / "out").glob("*.tar"))
