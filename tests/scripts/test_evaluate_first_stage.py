from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.evaluate_first_stage import Arguments, Job, main
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.prepared import PreparedSource
from taming.evaluation.sources.resize import CENTER, FILTERS, Resizing
from taming.pictures import HEAD
from tests.kit.extractor import register_tiny
from tests.kit.images import image_sizes, truncate, write_image, write_images
from tests.kit.models import DALLE, FIRST_STAGE, SEGMENTATION, TRANSFORMER
from tests.kit.processes import in_two_processes
from tests.kit.runs import run_with_data, tiny_run
from tests.modules.losses.backbones import backbone_file

NAMES = list(FILTERS)
TINY = "tests.kit.extractor:TinyExtractor"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No caches, weights or network of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TAMING_VGG16", str(tmp_path / "vgg16.pth"))
    monkeypatch.setenv("TAMING_ALEXNET", str(tmp_path / "alexnet.pth"))
    monkeypatch.setenv("TAMING_EXTRACTOR_WEIGHTS", str(tmp_path / "inception.pth"))


def written(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the result, and its JSON."""
    (path,) = folder.glob("first_stages-*/first_stages.json")
    return path.parent, json.loads(path.read_text())


def test_three_first_stages_on_validation_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = run_with_data(tmp_path / "vqgan")
    runs = [
        own,
        tiny_run(tmp_path / "transformer", TRANSFORMER),
        tiny_run(tmp_path / "dall-e", DALLE),
    ]
    vgg = backbone_file("vgg", tmp_path, monkeypatch)
    flags = ["--extractor", TINY, "--vgg_path", str(vgg), "--device", "cpu", "--rows", "3"]
    main([part for run in runs for part in ("-r", str(run))] + flags)
    folder, result = written(own / "evaluation")
    assert list(result["metrics"]) == ["vqgan", "transformer", "dall-e"]
    for name, metrics in result["metrics"].items():
        assert metrics["images"] == 6 and metrics["rfid"] > 0 and metrics["lpips_vgg"] > 0
        assert 0 < metrics["codebook_usage"] <= 1 <= metrics["codebook_perplexity"]
        assert "alexnet.pth" in result["left_out"][name]["lpips_alex"]
        assert "176 pixels" in result["left_out"][name]["ms_ssim"]
        assert len(result["sets"][name]["checkpoint_hash"]) == 64
    assert result["sets"]["images"]["cut_to_multiples_of"] == 8
    assert result["protocol"]["rfid"]["extractor"] == TINY
    assert len(result["protocol"]["lpips_vgg"]["backbone_sha256"]) == 64
    # The transformer's first stage has the weights that it was built with, not the other run's.
    assert result["metrics"]["vqgan"] != result["metrics"]["transformer"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("| first stage |   f | codes | images | L1") and len(printed) == 7
    assert printed[4].split("|")[1:4] == [" dall-e      ", "   8 ", "    16 "]
    assert "dall-e " in printed[5] and "973 (5.9 %)" in printed[5]
    assert all(sum(counts.values()) > 0 for counts in result["parameters"].values())
    assert result["images_a_second"]["vqgan"]["batch_size"] == 6
    assert min(result["images_a_second"]["vqgan"][name] for name in ("encode", "both")) > 0
    latex = (folder / "first_stages.tex").read_text().splitlines()
    assert len(latex) == 9 and latex[4].startswith("vqgan & 2 & 20 & 6 & ")
    assert r"& rFID $\downarrow$ & codes used &" in latex[2]
    text = (folder / "first_stages.md").read_text()
    assert printed[5] in text and "the median of 5 warm rounds with one batch of 6 images" in text
    assert printed[3] in text and "LPIPS (AlexNet) is left out: TAMING_ALEXNET" in text
    picture = Image.open(folder / "first_stages.png")
    assert picture.size == (4 * 260 + 4, HEAD + 3 * 260 + 4)
    with (folder / "images-vqgan.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["index"] for line in lines] == list("012345")
    psnr = sum(float(line["psnr"]) for line in lines) / 6
    assert psnr == pytest.approx(result["metrics"]["vqgan"]["psnr"])
    codes = (folder / "codes-dall-e.csv").read_text().splitlines()
    assert len(codes) == 17 and sum(int(line.split(",")[1]) for line in codes[1:]) == 6 * 2 * 2
    assert Image.open(folder / "codes.png").size[0] > 1000


def test_a_folder_without_any_networks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"a.png": (20, 30), "b.png": (40, 20), "c.png": (24, 24)}
    folder = image_sizes(tmp_path / "images", sizes)
    run = tiny_run(tmp_path / "run", FIRST_STAGE)
    main(["-r", str(run), "--images", str(folder), "--size", "16", "-o", str(tmp_path / "out")])
    place, result = written(tmp_path / "out")
    assert result["protocol"]["precision"] == "float32"
    picture = np.asarray(Image.open(place / "first_stages.png"))
    assert picture.shape == (HEAD + 3 * 260 + 4, 2 * 260 + 4, 3)
    # On the left the images themselves, enlarged from 16 to 256 pixels.
    pixels = PreparedSource(FolderSource(folder, workers=0), (16, 16)).load(0)[0]
    enlarged = np.kron(pixels.transpose(1, 2, 0), np.ones((16, 16, 1), np.uint8))
    np.testing.assert_array_equal(picture[HEAD + 4 : HEAD + 260, 4:260], enlarged)
    assert set(result["left_out"]["run"]) == {"rfid", "lpips_vgg", "lpips_alex", "ms_ssim"}
    assert set(result["metrics"]["run"]) >= {"l1", "psnr", "ssim", "codebook_usage"}
    sentences = [record.getMessage() for record in caplog.records]
    assert sum("everything else is computed" in sentence for sentence in sentences) == 3
    for name in ("vgg16.pth", "alexnet.pth", "inception.pth"):
        assert sum(name in sentence for sentence in sentences) == 1
    assert result["sets"]["images"]["sizes"] == {"16x16": 3}
    assert "rFID is left out" in (place / "first_stages.md").read_text()
    every = ["-r", str(run), "--images", str(folder), "--reference_resize", ",".join(NAMES)]
    assert len(Job(every).evaluators) == 1  # the others would count nothing


def test_the_first_of_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_data(tmp_path / "run")
    (config,) = (run / "configs").iterdir()
    flags = ["-r", str(run), "--data", str(config), "-n", "2", "--image_key", "depth"]
    main([*flags, "--precision", "bf16", "-o", str(tmp_path / "out"), "--device", "cpu"])
    _, result = written(tmp_path / "out")
    assert result["metrics"]["run"]["images"] == 2
    assert result["sets"]["images"]["key"] == "depth"
    assert result["protocol"]["precision"] == "bfloat16"
    assert Arguments.__dataclass_fields__["rows"].default == 8


def test_an_rfid_for_each_resize(tmp_path: Path) -> None:
    """The numbers are those of images that were resized before; they have one column each."""
    folder = image_sizes(tmp_path / "images", {f"{n}.png": (40, 30 + n) for n in range(5)})
    run = str(tiny_run(tmp_path / "run", FIRST_STAGE))
    flags = ["-r", run, "--extractor", TINY, "--device", "cpu", "--speed_rounds", "0"]
    every = ["--images", str(folder), "--size", "16", "--reference_resize", ",".join(NAMES)]
    main([*flags, *every, "-o", str(tmp_path / "out")])
    place, result = written(tmp_path / "out")
    metrics = result["metrics"]["run"]
    assert list(metrics["rfid_by_resize"]) == NAMES
    assert result["images_a_second"] == {}
    assert result["protocol"]["reference_resize"] == NAMES
    assert result["sets"]["images"]["resize"] == NAMES[0]
    assert result["sets"]["images"]["size"] == [16, 16]
    head = (place / "first_stages.md").read_text().partition("| first stage")[2].splitlines()[0]
    assert [f"rFID ({how})" in head for how in NAMES] == [True] * 3 and "rFID |" not in head
    assert r"& rFID (opencv) $\downarrow$ &" in (place / "first_stages.tex").read_text()
    for how in NAMES:
        for path in sorted(folder.iterdir()):
            small = Resizing(how, CENTER, (16, 16))(np.asarray(Image.open(path)))
            (tmp_path / how).mkdir(exist_ok=True)
            Image.fromarray(small).save(tmp_path / how / path.name)
        main([*flags, "--images", str(tmp_path / how), "-o", str(tmp_path / "alone" / how)])
        alone = written(tmp_path / "alone" / how)[1]["metrics"]["run"]
        assert alone["rfid"] == pytest.approx(metrics["rfid_by_resize"][how], rel=1e-9)
        assert (alone["psnr"] == metrics["psnr"]) == (how == NAMES[0])
    assert len(set(metrics["rfid_by_resize"].values())) == 3
    assert metrics["rfid"] == metrics["rfid_by_resize"][NAMES[0]]
    one = [*every[:-1], NAMES[0]]  # the same images, of which fewer numbers are there
    main([*flags, *one, "-o", str(tmp_path / "out"), "--rows", "1"])
    assert len(list((tmp_path / "out").rglob("first_stages.json"))) == 2


def test_segmentations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with_data(tmp_path / "run", SEGMENTATION)
    main(["-r", str(run)])
    printed = capsys.readouterr().out
    assert "pixel accuracy | mean IoU" in printed
    place, result = written(run / "evaluation")
    assert f"| {result['metrics']['run']['mean_iou']:.4f} " in printed
    assert result["metrics"]["run"]["pixel_accuracy"] > 0
    assert (place / "first_stages.png").is_file()


def test_two_processes_find_what_one_finds(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_with_data(tmp_path / "run", length=5)
    flags = ["-r", str(run), "--extractor", TINY, "--no_cache", "--device", "cpu"]
    flags += ["--batch_size", "2", "--workers", "0"]
    main([*flags, "-o", str(tmp_path / "1")])
    capfd.readouterr()
    in_two_processes(main, [*flags, "-o", str(tmp_path / "2")])
    assert capfd.readouterr().out.count("| first stage") == 1
    (_, alone), (_, shared) = written(tmp_path / "1"), written(tmp_path / "2")
    assert shared["hardware"]["processes"] == 2
    assert shared["sets"] == alone["sets"]
    assert shared["metrics"]["run"] == pytest.approx(alone["metrics"]["run"], rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-r", "nowhere"], "there is no run or checkpoint at nowhere"),
        (["-r", "RUN", "--images", "EMPTY"], "holds no images"),
        (["-r", "RUN", "--images", "IMAGES", "--data", "x.yaml"], "give one of them"),
        (["-r", "RUN"], "none of the runs has validation data of its own"),
        (["-r", "RUN", "--data", "x.yaml"], "there is no config file x.yaml"),
        (
            ["-r", "RUN", "--images", "IMAGES", "--size", "0"],
            "--size: a size is height,width in pixels",
        ),
        (["-r", "RUN", "--images", "IMAGES", "-n", "0"], "--num_images must be at least 1"),
        (["-r", "RUN", "--images", "IMAGES", "--batch_size", "0"], "--batch_size must be"),
        (["-r", "RUN", "--images", "IMAGES", "--weights", "no.pth"], ": there is no file"),
        (["-r", "RUN", "--images", "IMAGES", "--alex_path", "no.pth"], "alex_path: there is no"),
        (["-r", "RUN", "--images", "IMAGES", "--extractor", "vgg"], "no feature extractor vgg"),
        (["-r", "SEGMENTATION", "--images", "IMAGES"], "takes segmentations"),
        (["-r", "SEGMENTATION", "--size", "16"], "--size resizes images in color"),
        (["-r", "RUN", "--images", "IMAGES", "--data", "x.yaml"], "both name the images"),
        (["-r", "RUN", "-r", "SEGMENTATION"], "cannot be compared"),
        (["-r", "RUN", "--fast"], "unknown argument --fast"),
        (["-r", "RUN", "--rfid_resamples", "1"], "--rfid_resamples is 0, or at least 2, not 1"),
        (["-r", "RUN", "--speed_rounds", "-1"], "--speed_rounds must be at least 0"),
        (["-r", "RUN", "--reference_resize", "opencvv"], "no filter 'opencvv'; did you mean"),
        (["-r", "RUN", "--reference_resize", ","], "there is no filter ''"),
        (["-r", "SEGMENTATION", "--reference_resize", "opencv"], "for images in color, not for"),
    ],
)
def test_one_sentence_for_wrong_input(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_sizes(tmp_path / "images", {"a.png": (16, 16)})
    (images / "bad.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": images, "EMPTY": tmp_path / "empty"}
    if "RUN" in flags:
        places["RUN"] = tiny_run(tmp_path / "run", FIRST_STAGE)
    if "SEGMENTATION" in flags:
        places["SEGMENTATION"] = tiny_run(tmp_path / "segmentation", SEGMENTATION)
    register_tiny()
    with pytest.raises(SystemExit) as stop:
        main([str(places.get(flag, flag)) for flag in flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_damaged_images_of_a_dataset_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both what shows in the header, and so when the dataset is made, and what does not."""
    run = tiny_run(tmp_path / "run", FIRST_STAGE)
    images = write_images(tmp_path / "images", 5, 16, 16)
    jpeg = write_image(tmp_path / "images" / "cut.jpg", 64, 64)
    (tmp_path / "list.txt").write_text("\n".join([*images, jpeg]))
    truncate(jpeg)
    Path(images[2]).write_text("no image")
    dataset = {"target": "taming.data.custom.CustomTest", "params": {"size": 16}}
    dataset["params"]["test_images_list_file"] = str(tmp_path / "list.txt")  # type: ignore[index]
    config = {"data": {"params": {"validation": dataset}}}
    (tmp_path / "data.yaml").write_text(json.dumps(config))
    flags = ["-r", str(run), "--data", str(tmp_path / "data.yaml"), "--extractor", TINY]
    flags += ["--reference_resize", "opencv,pillow-antialias", "--size", "16"]
    register_tiny()
    with pytest.raises(SystemExit) as stop:
        main([*flags, "-o", str(tmp_path / "out"), "--workers", "2"])
    assert stop.value.code == 1
    errors = capsys.readouterr().err
    assert f"{images[2]}, from CustomTest" in errors and f"{jpeg}, from CustomTest" in errors
    assert "error: 2 images could not be used" in errors.splitlines()[-1]
    _, result = written(tmp_path / "out")
    assert result["metrics"]["run"]["images"] == 4
    assert len(result["metrics"]["run"]["rfid_by_resize"]) == 2
