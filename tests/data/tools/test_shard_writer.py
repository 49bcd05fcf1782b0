from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

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
    """Their description has no `exif`, which was ignored, and no `files`."""
    dataset = ImagePaths(write_images(tmp_path / "in", 2), 16, exif="ignore")
    write_shards(dataset, tmp_path / "out", 2)
    file = tmp_path / "out/shards.json"
    content = json.loads(file.read_text())
    del content["exif"], content["files"]
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


def test_files_that_vanish_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImagePaths(write_images(tmp_path / "in", 2), 16)

    def vanished(path: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("taming.data.tools.shard_writer.read_bytes", vanished)
    with pytest.raises(UserError, match="000.png cannot be read .*No such file"):
        write_shards(dataset, tmp_path / "out", 2)
    assert not list((tmp_path / "out").glob("*.tar"))
