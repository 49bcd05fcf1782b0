from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import complete as script
from scripts.complete import main
from scripts.make_samples import main as sample_data
from scripts.sample_fast import main as sample
from taming.sampling import sample_images
from taming.sampling.completion import known_indices
from taming.sampling.conditions import read_picture
from taming.sampling.folder import RECORD
from tests.kit.models import LABELS, SPIRAL, transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import SEGMENTED


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("logs") / "run")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)).save(path)
    return path


def complete(run: Path, image: Path, out: Path, *flags: str) -> Path:
    main(["-r", str(run), "--image", str(image), "-o", str(out), "--device", "cpu", *flags])
    return out / "7"


def test_kept_codes_are_kept(
    run: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def sample(*arguments: Any, **options: Any) -> Any:
        given.append((arguments[2].temperature, options["batch_size"], options["seed"]))
        return sample_images(*arguments, **options)

    monkeypatch.setattr("taming.sampling.filling.sample_images", sample)
    flags = ("--keep", "top-half", "--condition", "2", "-n", "3", "-t", "0.9")
    root = complete(run, image, tmp_path, *flags, "--batch_size", "2", "--seed", "3")
    assert given == [(0.9, 2, 3)]
    with Image.open(root / "000002.png") as written:
        record = json.loads(written.info[RECORD])
    made = {"keep": "top-half", "pad": "0,0,0,0", "condition": "2", "size": [8, 12], "top_k": 100}
    assert record.items() >= {**made, "image": str(image), "number": 2, "seed": 3}.items()
    names = sorted(path.name for path in root.iterdir())
    assert names == ["000000.png", "000001.png", "000002.png", "input.png", "kept.png"]
    assert Image.open(root / "000000.png").size == (12, 8)
    assert torch.equal(read_picture(root / "input.png"), read_picture(image)[:, :, :8])
    kept = read_picture(root / "kept.png")
    assert torch.equal(kept[:, :, :4], read_picture(image)[:, :, :4])
    assert kept[:, :, 4:].abs().max() < 0.01
    assert (root / names[0]).read_bytes() != (root / names[1]).read_bytes()
    before = (root / names[1]).read_bytes()
    (root / names[1]).unlink()
    complete(run, image, tmp_path, *flags, "--seed", "3")
    assert (root / names[1]).read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--order", "1,0"], "order has 2 places, and the image 16; name all"),
        (["--order", "0,0,1"], "order has each place once, and 0 is there twice"),
        (["--steps", "17"], "steps is 17, but the image has 16 codes"),
    ],
)
@pytest.mark.parametrize("script", ["complete", "sample", "data"])
def test_orders_of_other_images_are_refused_before_anything_is_written(
    script: str,
    flags: list[str],
    message: str,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labeled = {"target": "tests.scripts.test_figures.Labeled", "params": {}}
    config = transformer_config({"target_positions": True}, order="random")
    run = tiny_run(tmp_path / "run", config, validation=labeled)
    sized = ["--height", "8", "--width", "8", "--keep", "top-half", "--condition", "1"]
    with pytest.raises(SystemExit):
        if script == "complete":
            complete(run, image, tmp_path / "out", *sized, *flags)
        else:
            command = sample if script == "sample" else sample_data
            command(["-r", str(run), "-o", str(tmp_path / "out"), "--device", "cpu", *flags])
    said = capsys.readouterr()
    assert message in said.err and len(said.err.strip().splitlines()) == 1
    assert not said.out or said.out.endswith("\n")
    assert not (tmp_path / "out").exists()


def test_resized_and_extended(run: Path, image: Path, tmp_path: Path) -> None:
    sizes = ("--height", "8", "--width", "8")
    root = complete(run, image, tmp_path / "a", *sizes, "--keep", "0,0,4,8", "--condition", "1")
    assert len(list(root.glob("0*.png"))) == 4
    assert Image.open(root / "000003.png").size == (8, 8)
    root = complete(
        run, image, tmp_path / "b", *sizes, "--pad", "2,0,4,6", "--condition", "1", "-n", "1"
    )
    assert Image.open(root / "000000.png").size == (14, 14)
    kept = read_picture(root / "kept.png")
    assert torch.equal(kept[:, :, :8, 2:10], read_picture(root / "input.png"))


def test_unconditional(image: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", transformer_config(cond_stage_config="__is_unconditional__"))
    main(["-r", str(run), "--image", str(image), "--keep", "left-half", "-n", "1"])
    assert (run / "completions" / "noise" / "7" / "000000.png").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--condition", "1"], "--keep, or how far"),
        (["--keep", "top-half"], "a given 'class_label': give --condition N, a class from 0 to 4"),
        (["--keep", "top-half", "--condition", "9"], "a class, 0 to 4"),
        (["--keep", "middle", "--condition", "1"], "--keep takes"),
        (["--pad", "1,0,0,0", "--condition", "1"], "multiples of 2"),
        (["--pad", "a", "--condition", "1"], "--pad takes"),
        (["--keep", "top-half", "-n", "0", "--condition", "1"], "--num_samples"),
        (["--keep", "top-half", "--condition", "1", "--height", "7"], "multiple of 2"),
        (["--keep", "top-half", "--condition", "1", "--steps", "4"], "one code after the other"),
        (["--keep", "top-half", "--condition", "1", "--guidance", "2"], "with cond_drop"),
    ],
)
def test_one_sentence_for_wrong_flags(
    run: Path,
    image: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        complete(run, image, tmp_path / "out", *flags)
    said = capsys.readouterr()
    assert message in said.err
    assert not said.out or said.out.endswith("\n")  # no line was begun
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 x 48 pixels, as shown: eight times as wide as the images of training."""
    path, exif = tmp_path_factory.mktemp("photos") / "photo.png", Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(1).integers(0, 255, (64, 48, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_a_photograph_is_reduced_and_what_will_be_done_is_said(
    run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = complete(run, photo, tmp_path, "--keep", "top-half", "--condition", "2", "-n", "2")
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == (
        "the image of 64 x 48 pixels is reduced; --full_size keeps its size"
    )
    line = r"10 x 8 pixels are 20 tokens, of which 10 are sampled for each of 2 images: about .* s"
    assert re.match(line, said.out.splitlines()[1])
    assert "20/20" in said.err and "token" in said.err
    assert Image.open(root / "000000.png").size == Image.open(root / "input.png").size == (10, 8)
    upright = Image.fromarray(np.rot90(np.asarray(Image.open(photo)), 3))
    expected = np.asarray(upright.resize((11, 8), Image.Resampling.BILINEAR))[:, :10]
    np.testing.assert_array_equal(np.asarray(Image.open(root / "input.png")), expected)


def test_boxes_and_masks_are_of_the_photograph(run: Path, photo: Path, tmp_path: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :24] = 255  # three eighths of 10.67 columns: the first 4, 2 tokens
    Image.fromarray(mask).save(tmp_path / "mask.png")
    roots = [
        complete(run, photo, tmp_path / str(n), "--keep", keep, "--condition", "2", "-n", "1")
        for n, keep in enumerate(("0,0,24,48", str(tmp_path / "mask.png")))
    ]
    kept = [read_picture(root / "kept.png") for root in roots]
    assert torch.equal(kept[0], kept[1])
    sized = ("--size", "8,8", "--keep", "0,0,32,48", "--condition", "2", "-n", "1")  # the left half
    middle = read_picture(complete(run, photo, tmp_path / "sized", *sized) / "kept.png")
    assert middle[..., :4].abs().max() > 0.01 and middle[..., 4:].abs().max() < 0.01
    assert torch.equal(kept[0][..., :4], read_picture(roots[0] / "input.png")[..., :4])
    assert kept[0][..., 4:].abs().max() < 0.01


def test_masks_of_an_image_that_fills_no_whole_tokens_are_its_own(
    run: Path, photo: Path, tmp_path: Path
) -> None:
    """9 rows, of which the last one is cut off; a mask without it will do as well."""
    cut = tmp_path / "cut.png"
    Image.open(photo).resize((12, 9)).save(cut)
    kept = []
    for rows in (9, 8):
        mask = np.zeros((rows, 12), np.uint8)
        mask[:, :4] = 255
        Image.fromarray(mask).save(tmp_path / f"{rows}.png")
        flags = ("--keep", str(tmp_path / f"{rows}.png"), "--condition", "2", "-n", "1")
        root = complete(run, cut, tmp_path / f"of_{rows}", *flags, "--full_size")
        kept.append(read_picture(root / "kept.png"))
    assert torch.equal(*kept) and kept[0][..., :4].abs().max() > 0.01
    assert kept[0].shape[2:] == (8, 12)


def test_a_box_too_small_for_the_reduced_photograph(
    run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        complete(run, photo, tmp_path / "out", "--keep", "0,0,8,8", "--condition", "2")
    said = capsys.readouterr()
    assert said.out == "the image of 64 x 48 pixels is reduced; --full_size keeps its size\n"
    assert (
        "once the image is resized or cut off: boxes and masks are in its own 64 x 48 pixels"
        in said.err
    )
    with pytest.raises(SystemExit):
        complete(run, photo, tmp_path / "out", "--keep", "0,0,99,8", "--condition", "2")
    assert "not inside of the image, 0,0,64,48 in its own pixels" in capsys.readouterr().err


def test_full_size_keeps_the_photograph(
    run: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before: list[str] = []

    def noted(*args: Any) -> torch.Tensor:
        before.append(capsys.readouterr().out)
        return known_indices(*args)

    monkeypatch.setattr(script, "known_indices", noted)
    flags = ("--keep", "0,0,62,48", "--condition", "2", "-n", "1", "--full_size")
    assert Image.open(complete(run, photo, tmp_path, *flags) / "000000.png").size == (64, 48)
    [said] = before  # before the image is encoded
    assert said == "64 x 48 pixels are 768 tokens, of which 24 are sampled for each image"
    assert capsys.readouterr().out.startswith(": about ")


def test_a_map_is_reduced_as_its_photograph(photo: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", transformer_config(**SEGMENTED))
    labels = np.random.default_rng(0).integers(0, LABELS, (48, 64), np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    flags = ("--keep", "left-half", "--condition", str(tmp_path / "labels.png"), "-n", "1")
    root = complete(run, photo, tmp_path / "out", *flags)
    assert Image.open(root / "000000.png").size == (10, 8)
    Image.fromarray(labels[:40]).save(tmp_path / "labels.png")
    with pytest.raises(SystemExit):
        complete(run, photo, tmp_path / "other", *flags, "--full_size")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    root = complete(run, photo, tmp_path / "full", *flags, "--full_size")
    assert Image.open(root / "000000.png").size == (64, 48)


def test_an_order_of_one_size_names_it(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "run", transformer_config(permuter_config=SPIRAL))
    for flags, message in (
        ((), "8 x 8 pixels only, and this one has 8 x 12; add --size 8,8"),
        (("--size", "8,8", "--pad", "2,0,0,0"), "this one has 8 x 10; leave --pad out"),
    ):
        with pytest.raises(SystemExit):
            complete(run, image, tmp_path / "out", "--keep", "top-half", *flags)
        assert message in capsys.readouterr().err
    flags = ("--keep", "top-half", "--size", "8,8", "--condition", "2")
    assert (complete(run, image, tmp_path / "out", *flags) / "000003.png").is_file()


@pytest.mark.parametrize("order", ["random", "raster"])
def test_beside_an_image_all_of_it_is_seen_if_the_order_lets_it(
    order: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpt = {"target_positions": order == "random"}
    run = tiny_run(tmp_path / "run", transformer_config(gpt, order=order))
    codes: list[torch.Tensor] = []

    def sample(*arguments: Any, **options: Any) -> Any:
        for one in sample_images(*arguments, **options):
            codes.append(one.indices.view(6, 6))
            yield one

    monkeypatch.setattr("taming.sampling.filling.sample_images", sample)
    flags = ("--pad", "4,4,0,0", "--condition", "2", "-n", "1")
    for shade in (0, 255):
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(tmp_path / f"{shade}.png")
        complete(run, tmp_path / f"{shade}.png", tmp_path / str(shade), *flags)
    above = [one[:2] for one in codes]  # before what is kept, row by row
    assert torch.equal(*above) == (order == "raster")
    said = "12 x 12 pixels are 36 tokens, of which 20 are sampled for each image: about "
    assert capsys.readouterr().out.count(said) == 2
    if order == "random":
        complete(run, tmp_path / "0.png", tmp_path / "steps", *flags, "--steps", "3")
        assert len(codes) == 3


def test_other_contents_of_the_same_files_are_other_samples(
    run: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.open(image).crop((0, 0, 12, 8)).save(photo)
    Image.fromarray(np.repeat(np.uint8([[0] * 8 + [255] * 4]), 8, 0)).save(mask)
    flags = ("--keep", str(mask), "--condition", "2", "-n", "1")
    root = complete(run, photo, tmp_path / "out", *flags)
    before = (root / "input.png").read_bytes()
    complete(run, tmp_path / "." / ".." / tmp_path.name / "photo.png", tmp_path / "out", *flags)
    assert "(0 of them new)" in capsys.readouterr().out  # whatever path names the file
    for path, flag in ((mask, "keep"), (photo, "image")):
        kept = path.read_bytes()
        half = Image.new("L", (12, 8))
        half.paste(255, (0, 0, 6, 8))
        half.convert(Image.open(path).mode).save(path)
        with pytest.raises(SystemExit):
            complete(run, photo, tmp_path / "out", *flags)
        assert f"was sampled with another content of the file of --{flag}: choose another" in (
            capsys.readouterr().err
        )
        path.write_bytes(kept)
    assert (root / "input.png").read_bytes() == before


def test_the_same_words_of_another_picture_are_other_samples(
    run: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A box is in the photograph's own pixels, whatever size is given; another crop is another."""
    square, wide = tmp_path / "square.png", tmp_path / "wide.png"
    Image.open(image).resize((16, 16)).save(square)
    Image.open(image).resize((11, 9)).save(wide)
    flags = ("--condition", "2", "-n", "1", "--keep")
    complete(run, square, tmp_path / "square", *flags, "0,0,4,8")
    complete(run, square, tmp_path / "square", *flags, "0,0,4,8", "--size", "8,8")
    assert "(0 of them new)" in capsys.readouterr().out
    root = complete(run, wide, tmp_path / "wide", *flags, "top-half", "--full_size")
    before = (root / "kept.png").read_bytes()
    with pytest.raises(SystemExit):
        complete(run, wide, tmp_path / "wide", *flags, "top-half", "--size", "8,10")
    assert "was sampled with another picture of the image" in capsys.readouterr().err
    assert (root / "kept.png").read_bytes() == before
