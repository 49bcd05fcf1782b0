from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from scripts import reconstruct as script
from scripts.evaluate_first_stage import main as evaluate_first_stage
from scripts.reconstruct import batches, main
from taming.evaluation.tasks.reconstruction import ReconstructionAccumulator
from taming.pictures import grid
from taming.sampling.conditions import read_picture
from taming.sampling.folder import save_png
from tests.kit.images import image_sizes
from tests.kit.models import FIRST_STAGE, tiny_model
from tests.kit.runs import tiny_run


def write_images(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    sizes = {"a.png": (8, 8), "b.png": (8, 8), "sub/c.jpg": (11, 13)}
    for name, (height, width) in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


DALLE: dict[str, Any] = {
    "target": "taming.models.dalle.DalleVAE",
    "params": {"n_embed": 16, "n_hid": 8, "n_init": 4, "resolution": 16},
}


@pytest.mark.parametrize("config", [None, FIRST_STAGE])
def test_a_folder(config: dict | None, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    run = tiny_run(tmp_path / "run", config)
    main(["-r", str(run), str(folder), "--device", "cpu"])
    root = run / "reconstructions" / "images" / "7"
    assert Image.open(root / "sub" / "c.jpg.png").size == (12, 10)
    stage = tiny_model(config)
    stage = getattr(stage, "first_stage_model", stage)
    x = read_picture(folder / "a.png")
    with torch.no_grad():
        expected = stage(x)[0]
    written = read_picture(root / "a.png")
    assert (written - expected.clamp(-1, 1)).abs().max() < 0.005
    metrics = json.loads((root / "metrics.json").read_text())
    assert metrics["images"] == 3
    assert metrics["l1"] > 0
    assert metrics["global_step"] == 7


def test_dalles_first_stage(tmp_path: Path) -> None:
    folder, run = write_images(tmp_path / "images"), tiny_run(tmp_path / "run", DALLE)
    main(["-r", str(run), str(folder), "-o", str(tmp_path / "out")])
    files = sorted((tmp_path / "out").rglob("*.png"))
    assert [Image.open(path).size for path in files] == [(8, 8)] * 3


def nearest_labels(labels: np.ndarray, side: int) -> np.ndarray:
    """The labels (H, W), reduced until they just cover a square, whose middle is kept."""
    scale = side / min(labels.shape)
    height, width = (round(scale * length) for length in labels.shape)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip((height, width), labels.shape, strict=True)
    )
    top, left = (height - side) // 2, (width - side) // 2
    return labels[rows][:, columns][top : top + side, left : left + side]


@pytest.mark.parametrize("size", [[], ["--size", "4"]])
def test_labels(size: list[str], tmp_path: Path) -> None:
    ddconfig = FIRST_STAGE["params"]["ddconfig"] | {"in_channels": 5, "out_ch": 5}
    params = {**FIRST_STAGE["params"], "n_labels": 5, "ddconfig": ddconfig}
    stage = {"target": "taming.models.vqgan.VQSegmentationModel", "params": params}
    (tmp_path / "labels").mkdir()
    labels = (np.arange(80).reshape(8, 10) // 4 % 5).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels/a.png")
    run = tiny_run(tmp_path / "run", stage)
    main(["-r", str(run), str(tmp_path / "labels"), "--device", "cpu", *size])
    root = run / "reconstructions/labels/7"
    written = np.asarray(Image.open(root / "a.png"))
    metrics = json.loads((root / "metrics.json").read_text())
    assert written.max() < 5 and written.shape == ((4, 4) if size else (8, 10))
    read = nearest_labels(labels, 4) if size else labels
    assert metrics["pixel_accuracy"] == pytest.approx(np.mean(written == read))
    assert "l1" not in metrics


def test_both_scripts_see_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first stage gets the same values from here and from scripts/evaluate_first_stage.py."""
    for name in ("TAMING_VGG16", "TAMING_ALEXNET", "TAMING_EXTRACTOR_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere.pth"))
    folder, run = write_images(tmp_path / "images"), tiny_run(tmp_path / "run", FIRST_STAGE)
    seen: list[torch.Tensor] = []
    update = ReconstructionAccumulator.update_values

    def noted(self: Any, indices: torch.Tensor, x: torch.Tensor, *labels: Any) -> Any:
        seen.extend(x)
        return update(self, indices, x, *labels)

    monkeypatch.setattr(ReconstructionAccumulator, "update_values", noted)
    flags = ["-r", str(run), "--size", "6,10", "-o", str(tmp_path / "out"), "--device", "cpu"]
    main([*flags, str(folder)])
    written, seen[:] = torch.stack(seen), []
    evaluate_first_stage([*flags, "--images", str(folder), "--deep"])
    assert written.shape == (3, 3, 6, 10)
    assert torch.equal(torch.stack(seen), written)


def test_resized_to_a_square(tmp_path: Path) -> None:
    folder, run = write_images(tmp_path / "images"), tiny_run(tmp_path / "run")
    main(["-r", str(run), str(folder), "-o", str(tmp_path / "out"), "--size", "6", "-n", "2"])
    files = sorted((tmp_path / "out").rglob("*.png"))
    assert [Image.open(path).size for path in files] == [(6, 6)] * 2


def test_sizes_do_not_take_each_others_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = write_images(tmp_path / "images"), tiny_run(tmp_path / "run", FIRST_STAGE)
    command = ["-r", str(run), str(folder), "--device", "cpu"]
    root = run / "reconstructions" / "images"
    for flags in ([], ["--size", "4,6"], ["--size", "6"], [], ["--size", "4,6"]):
        main([*command, *flags])
    assert sorted(path.name for path in root.iterdir()) == ["7", "7_6x4", "7_6x6"]
    sizes = [Image.open(root / name / "a.png").size for name in ("7", "7_6x4", "7_6x6")]
    assert sizes[1:] == [(6, 4), (6, 6)] and sizes[0] not in sizes[1:]
    assert all((path / "comparison.jpg").is_file() for path in root.iterdir())
    other = write_images(tmp_path / "elsewhere" / "images")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["-r", str(run), str(other)])
    assert stop.value.code == 2
    assert "has reconstructions of another folder" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == code
    return capsys.readouterr().err


def test_a_folder_has_reconstructions_of_one_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same weights and config, by whatever path; also when it was left unfinished."""
    folder, run = write_images(tmp_path / "images"), tiny_run(tmp_path / "run", FIRST_STAGE)
    file = run / "checkpoints" / "last.ckpt"
    content = torch.load(file)
    average = {f"ema.{n}": t + 0.1 for n, t in content["state_dict"].items()}
    torch.save(content | {"model_ema": average}, file)
    monkeypatch.chdir(tmp_path)
    root = run / "reconstructions" / "images" / "7"

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(script, "grid", stopped)
        assert "interrupted" in refused(capsys, "-r", "run", "images", code=130)
    assert (root / "a.png").is_file() and not (root / "metrics.json").exists()
    for _ in range(2):
        other = refused(capsys, "-r", "run", "images", "--weights", "raw")
        assert "has reconstructions of other weights (another checkpoint, or others" in other
        other = refused(capsys, "-r", "run", "images", "model.params.ddconfig.dropout=0.5")
        assert "has reconstructions of another config of the model" in other
        main(["-r", str(run.resolve()), str(folder)])
    assert json.loads((root / "metrics.json").read_text())["checkpoint"] == str(file.resolve())


def test_names_do_not_take_each_others_place(tmp_path: Path) -> None:
    names = ("a.jpg", "a.jpg.png", "b.jpg", "a.JPG.png.png")
    folder = image_sizes(tmp_path / "images", dict.fromkeys(names, (8, 8)))
    run = tiny_run(tmp_path / "run", FIRST_STAGE)
    main(["-r", str(run), str(folder), "-o", str(tmp_path / "out")])
    written = {path.name for path in (tmp_path / "out" / "7").glob("*.png")}
    assert written == {"a.jpg.png.png", "a.jpg.png", "b.jpg.png", "a.JPG.png.png"}
    main(["-r", str(run), str(folder), "-o", str(tmp_path / "few"), "-n", "1"])
    (only,) = (tmp_path / "few" / "7").glob("*.png")
    assert only.read_bytes() == (tmp_path / "out" / "7" / only.name).read_bytes()


def test_the_comparison_has_images_beside_their_reconstructions(tmp_path: Path) -> None:
    folder, run = write_images(tmp_path / "images"), tiny_run(tmp_path / "run", FIRST_STAGE)
    main(["-r", str(run), str(folder), "-o", str(tmp_path / "out"), "--size", "8"])
    page = np.asarray(Image.open(tmp_path / "out/7/comparison.jpg")).astype(int)
    assert page.shape[0] > 3 * 256  # all three
    copy = np.asarray(Image.open(tmp_path / "out/7/a.png"))
    original = read_picture(folder / "a.png", size=(8, 8))[0].permute(1, 2, 0).numpy()
    found = []
    for pixels in ((original + 1) * 127.5, copy):
        square = np.kron(pixels, np.ones((32, 32, 1)))  # enlarged to 256
        places = [
            np.abs(page[top : top + 256, left : left + 256] - square).mean()
            for top in range(30, 60)
            for left in (8, 272)
            if page[top : top + 256, left : left + 256].shape == square.shape
        ]
        found.append(min(places))
    assert max(found) < 12  # JPEG


def test_batches_are_of_one_size_and_pictures_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    rows: list[Any] = []

    def noted(images: Any, size: int) -> Any:
        for names, x in batches(images, size):
            shapes.append(tuple(x.shape))
            yield names, x

    def drawn(cells: Any, *args: Any, **options: Any) -> Any:
        rows.append([name for (name, _), _ in cells])
        return grid(cells, *args, **options)

    monkeypatch.setattr(script, "batches", noted)
    monkeypatch.setattr(script, "grid", drawn)
    heights = {f"{n}.png": (8, 8 if n < 9 else 6) for n in range(10)}
    folder = image_sizes(tmp_path / "images", heights)
    run = tiny_run(tmp_path / "run", FIRST_STAGE)
    command = ["-r", str(run), str(folder), "-o", str(tmp_path / "out"), "--device", "cpu"]
    main(command)
    assert shapes == [(4, 3, 8, 8), (4, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 6)]
    assert rows == [[f"{n}.png" for n in range(8)]]
    shapes.clear()
    main([*command, "--batch_size", "7", "-n", "8"])
    assert shapes == [(7, 3, 8, 8), (1, 3, 8, 8)]


def test_the_bar_counts_finished_images_and_large_ones_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars: list[Any] = []
    counted: list[int] = []

    class Noted(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            bars.append(self)

    def saved(image: Any, path: Path, record: Any) -> None:
        counted.append(bars[0].n)
        save_png(image, path, record)

    monkeypatch.setattr(script, "tqdm", Noted)
    monkeypatch.setattr(script, "save_png", saved)
    heights = {"a.png": (8, 8), "b.png": (8, 8), "c.png": (60, 64), "d.png": (80, 64)}
    folder, run = image_sizes(tmp_path / "images", heights), tiny_run(tmp_path / "run", FIRST_STAGE)
    (folder / "bb.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["-r", str(run), str(folder), "--device", "cpu"])
    # bb.png is passed over while the second of its batch is looked for
    assert counted == [1, 2, 3, 4] and bars[0].n == bars[0].total == 5
    said = capsys.readouterr().out
    line = r"64 x 60 pixels are \d+ times those of training: about .* s for each such image; --size"
    assert re.match(line, said) and said.count("times those of training") == 1


def test_damaged_images_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = write_images(tmp_path / "images"), tiny_run(tmp_path / "run", FIRST_STAGE)
    (folder / "aa.png").write_bytes(b"")
    (folder / "z.jpg").write_text("no image")
    Image.new("RGB", (1, 1)).save(folder / "speck.png")
    with pytest.raises(SystemExit) as stop:
        main(["-r", str(run), str(folder)])
    output = capsys.readouterr()
    assert stop.value.code == 1
    assert "3 reconstructions, comparison.jpg and metrics.json are in" in output.out
    *named, last = output.err.strip().splitlines()[-4:]
    for line, reason in zip(named, ("aa.png is empty", "speck.png", "z.jpg is no"), strict=True):
        assert line.startswith("left out: ") and reason in line
    assert last == "error: 3 images could not be used; all others were"
    assert json.loads((run / "reconstructions/images/7/metrics.json").read_text())["images"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["EMPTY"], "there are no images in"),
        (
            ["IMAGES", "--size", "0"],
            "--size: a size is height,width in pixels",
        ),
        (["IMAGES", "--size", "1"], "fewer than the 2 of one token"),
    ],
)
def test_one_sentence_for_wrong_input(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = write_images(tmp_path / "images"), tiny_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": str(folder), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(SystemExit):
        main(["-r", str(run), *(places.get(flag, flag) for flag in flags)])
    assert message in capsys.readouterr().err
