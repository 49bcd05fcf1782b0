from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from scripts.evaluate_scenes import Job, main
from scripts.make_scene_samples import main as make_scene_samples
from taming.evaluation.results import read_result
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.tasks.fidelity import flattened
from tests.kit.images import truncate
from tests.kit.processes import in_two_processes
from tests.kit.runs import newest
from tests.kit.scenes import scene_run, write_scenes

SMALL = ["-R", "8,8", "--isc_splits", "2", "--device", "cpu", "--batch_size", "4"]
TINY = ["--extractor", "tests.kit.extractor:TinyExtractor"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_scenes(tmp_path_factory.mktemp("scenes"), 5)
    return scene_run(root)


@pytest.fixture(autouse=True)
def kept(cache: Path) -> Path:
    """The folder of the features that are kept."""
    return cache / "taming" / "evaluation"


def evaluate(run: Path, *flags: str) -> dict[str, Any]:
    main(["-r", str(run), *SMALL, *TINY, *flags])
    return read_result(newest(run / "evaluation", "scenes-*.json"))


def test_numbers_of_scenes(run: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate(run, "-N", "2", "-n", "4")
    metrics, sets = result["metrics"], result["sets"]
    assert metrics["fid"] > 0 and metrics["scene_fid"] > 0 and metrics["isc"]["mean"] >= 1
    assert (sets["samples"]["images"], sets["reference"]["images"]) == (8, 4)
    assert sets["samples"]["sampler"]["samples_per_layout"] == 2
    assert sets["samples"]["objects"] == 2 * sets["reference"]["objects"] > 8
    assert [row["sample"] for row in result["by_sample"]] == [0, 1]
    assert result["protocol"]["extractor"]["weights_sha256"]
    assert result["protocol"]["seed"] == 2020  # of the Inception Score's parts
    assert "| scene_fid" in newest(run / "evaluation", "scenes-*.md").read_text()
    assert "SceneFID" in capsys.readouterr().out
    assert not list(kept.glob("*partial*"))


def test_images_are_those_of_the_other_script(run: Path, tmp_path: Path) -> None:
    own = ["-N", "2", "-n", "3", "--seed", "5", "-k", "3", "-t", "0.7"]
    result = evaluate(run, *own)
    make_scene_samples(["-r", str(run), "-o", str(tmp_path), "-R", "8,8", *own, "--device", "cpu"])
    written = FolderSource(tmp_path / "7_3_0.7" / "samples")
    assert written.fingerprint() == result["sets"]["samples"]["fingerprint"]


def test_scenes_of_other_weights_of_the_same_file_are_others(run: Path) -> None:
    command = ["-r", str(run), *SMALL, *TINY, "-n", "2"]
    raw, usual = Job([*command, "--weights", "raw"]).samples, Job(command).samples
    assert (raw.describe()["weights"], usual.describe()["weights"]) == ("raw", None)
    assert raw.content_key() != usual.content_key()


def test_data_of_another_config(run: Path, tmp_path: Path) -> None:
    (project,) = (run / "configs").glob("*-project.yaml")
    config = OmegaConf.load(project)
    config.data.params.train = config.data.params.pop("validation")
    OmegaConf.save(config, tmp_path / "data.yaml")
    flags = ["--data", str(tmp_path / "data.yaml"), "--split", "train"]
    flags += ["--sampler_precision", "bf16", "--min_object_side", "3"]
    flags += ["--reference_resize", "opencv", "--reference_size", "16"]
    result = evaluate(run, *flags, "data.params.train.params.max_objects_per_image=9")
    assert result["sets"]["reference"]["images"] == 5
    sampler = result["sets"]["samples"]["sampler"]
    assert (sampler["samples_per_layout"], sampler["top_k"]) == (5, 100)
    assert sampler["precision"] == "bfloat16"
    assert result["protocol"]["min_object_side"] == 3
    reference = result["sets"]["reference"]
    assert (reference["resize"], reference["crop"]) == ("opencv", "center")
    assert reference["size"] == [16, 16] and reference["sizes"] == {"16x16": 5}


def test_two_processes_give_the_same(run: Path) -> None:
    flags = ["-N", "2", "-n", "5", "--no_cache"]
    alone = evaluate(run, *flags)
    in_two_processes(main, ["-r", str(run), *SMALL, *TINY, *flags])
    shared = read_result(newest(run / "evaluation", "scenes-*.json"))
    assert shared["hardware"]["processes"] == 2
    numbers = dict(flattened(alone["metrics"]))
    assert dict(flattened(shared["metrics"])) == pytest.approx(numbers, rel=1e-5, abs=1e-8)
    for role in ("samples", "reference"):
        assert shared["sets"][role] == alone["sets"][role]


def test_a_damaged_image_leaves_its_layout_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scene_run(write_scenes(tmp_path, 5))
    image = tmp_path / "data/coco_annotations/val2017/000000000002.jpg"
    truncate(image, 0.6)
    with pytest.raises(SystemExit) as stop:
        main(["-r", str(run), *SMALL, *TINY, "-N", "1"])
    assert stop.value.code == 1
    errors = capsys.readouterr().err
    assert f"left out: {image}" in errors and "error: 1 image could not be used" in errors
    result = read_result(newest(run / "evaluation", "scenes-*.json"))
    assert result["sets"]["reference"]["images"] == result["sets"]["samples"]["images"] == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-R", "8x8"], "a size is height,width"),
        (["-N", "0"], "--samples_per_layout must be at least 1"),
        (["--min_object_side", "0"], "--min_object_side must be above 0"),
        (["-n", "1"], "FID needs at least 2 layouts"),
        (["--isc_splits", "9"], "needs at least 9 layouts"),
        (["-C", "objects_boxes"], "did you mean 'objects_bbox'"),
        (["--split", "train"], "no 'train'"),
        (["--reference_resize", "cv2"], "no --reference_resize 'cv2'"),
        (["--reference_size", "0"], "--reference_size must be at least 1, not 0"),
    ],
)
def test_one_sentence(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["-r", str(run), *SMALL, *TINY, *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
