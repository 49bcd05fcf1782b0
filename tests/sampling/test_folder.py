from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from taming.errors import UserError
from taming.pictures import to_pillow
from taming.sampling import Sample, SampleSettings
from taming.sampling.filling import filling
from taming.sampling.folder import (
    RECORD,
    FolderWriter,
    SampleFolder,
    make_record,
    record_of,
)
from taming.sampling.plan import SamplingJob, SamplingPlan
from tests.kit.models import tiny_model

RECORDED = {"seed": 0, "top_k": 5}
INDICES = torch.arange(4)


def sample(number: int, label: int | None = None, channels: int = 3) -> Sample:
    return Sample(number, label, INDICES, torch.full((channels, 2, 3), 0.5))


def test_files_and_their_records(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path / "samples", RECORDED)
    assert folder.finished(None) == set()
    folder.save(sample(12))
    folder.save(sample(3, label=7))
    with Image.open(tmp_path / "samples" / "7" / "000003.png") as image:
        assert json.loads(image.info[RECORD]) == {**RECORDED, "class": 7, "number": 3}
        assert image.size == (3, 2)
    folder.save(sample(1_000_000))
    assert folder.finished(None) == {12, 1_000_000}
    assert folder.finished(7) == {3}


def test_what_decides_samples_is_recorded() -> None:
    record = make_record(3, 70, torch.bfloat16, SampleSettings(top_k=5), {"weights": "1a"})
    expected = {"seed": 3, "global_step": 70, "dtype": "torch.bfloat16", "weights": "1a"}
    assert record == {**expected, **asdict(SampleSettings(top_k=5))}


def test_unfinished_and_other_files_do_not_count(tmp_path: Path) -> None:
    for name in (".000001.png.9.partial", "grid.png", "12.png"):
        (tmp_path / name).touch()
    assert SampleFolder(tmp_path, RECORDED).finished(None) == set()


def test_samples_of_other_settings(tmp_path: Path) -> None:
    SampleFolder(tmp_path, {**RECORDED, "seed": 1}).save(sample(0))
    with pytest.raises(UserError, match="000000.png was sampled with seed 1, not 0"):
        SampleFolder(tmp_path, RECORDED).finished(None)


@pytest.mark.parametrize("key", ["weights", "config"])
def test_samples_of_other_models(tmp_path: Path, key: str) -> None:
    SampleFolder(tmp_path, {**RECORDED, key: "1a2b"}).save(sample(0))
    with pytest.raises(UserError, match=f"000000.png was sampled with (other|another) {key} .*"):
        SampleFolder(tmp_path, {**RECORDED, key: "3c4d"}).finished(None)


def test_files_of_others_are_kept_but_broken_ones_named(tmp_path: Path) -> None:
    theirs = PngInfo()
    theirs.add_text(RECORD, "[1]")
    to_pillow(sample(0).image).save(tmp_path / "000004.png", pnginfo=theirs)
    folder = SampleFolder(tmp_path, RECORDED)
    assert folder.finished(None) == {4}
    (tmp_path / "000002.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="000002.png is no intact PNG"):
        folder.finished(None)


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = SampleFolder(tmp_path / "file" / "samples", RECORDED)
    with pytest.raises(UserError, match="cannot write .*finished samples stay"):
        folder.save(sample(0))
    with pytest.raises(UserError, match="file is a file, not a folder; choose another --outdir"):
        folder.finished(None)


class Broken(SampleFolder):
    """A folder to which nothing can be written, which shows later than it is asked for."""

    def save(self, sample: Sample) -> None:
        raise UserError("no room")


def test_threads_hide_no_errors(tmp_path: Path) -> None:
    folder, count = Broken(tmp_path, RECORDED), 0
    with pytest.raises(UserError, match="no room"):
        with FolderWriter(folder) as writer:
            writer.save(sample(0))  # the last
    with pytest.raises(UserError, match="no room"):
        with FolderWriter(folder, threads=1) as writer:
            for count in range(9):
                writer.save(sample(count))
    assert count == 4


def test_where_batches_decide_a_folder_keeps_its_size(tmp_path: Path) -> None:
    plan = SamplingPlan(num_samples=9, dtype=torch.bfloat16)
    job = SamplingJob(plan, tiny_model(), [1, 2], batch_size=25)
    folder = SampleFolder(tmp_path, RECORDED)
    (tmp_path / "1").mkdir()
    for name in ("._000000.png", "000.png", "a.png"):  # of file managers, and of people
        (tmp_path / "1" / name).write_bytes(b"no picture")
    assert folder.goes_on_with(job) == job and folder.record["batch_size"] == 25
    SampleFolder(tmp_path, {**RECORDED, "batch_size": 3}).save(sample(0, label=2))
    assert folder.goes_on_with(job) == replace(job, batch_size=3)
    assert folder.record["batch_size"] == 3
    exact = replace(job, plan=replace(plan, dtype=torch.float32))
    assert folder.goes_on_with(exact) is exact


def test_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match="No space left on device"):
        SampleFolder(tmp_path, RECORDED).save(sample(0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_classes_is_filled_by_one_command(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path / "samples", RECORDED)
    with filling(folder, torch.float32, 4, 3) as going:
        assert (going.missing, going.batch_size, going.filled) == ([0, 1, 2], 4, False)
        going.save(sample(1, label=3), condition_hash="c")
        with pytest.raises(UserError, match="another process is writing to"):
            with filling(SampleFolder(folder.root, RECORDED), torch.float32, 4, 3):
                raise AssertionError("the block must not start")
    assert record_of(folder.root / "000001.png")["condition_hash"] == "c"
    with pytest.raises(UserError, match="is a file, not a folder; choose another --outdir"):
        with filling(SampleFolder(folder.root / "000001.png", {}), torch.float32, 4, 3):
            raise AssertionError("the block must not start")
    with filling(folder, torch.bfloat16, 4, 3) as going:
        assert (going.missing, going.batch_size, going.filled) == ([0, 2], 3, True)


def test_a_second_command_is_told_of_the_first(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path / "new" / "samples", RECORDED)
    with FolderWriter(folder) as writer:
        writer.save(sample(1))
        with pytest.raises(
            UserError, match=r"another process is writing to .*samples; wait for it"
        ):
            with FolderWriter(folder):
                raise AssertionError("the block must not start")
    with FolderWriter(folder) as writer:  # and begins once it is done
        writer.save(sample(2))
    assert folder.finished(None) == {1, 2}


def test_another_rank_of_a_command_shares_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SampleFolder(tmp_path / "samples", RECORDED)
    with FolderWriter(folder):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with FolderWriter(folder) as writer:
            writer.save(sample(1))
    assert folder.finished(None) == {1}
