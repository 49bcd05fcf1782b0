from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scripts import guide as script
from scripts.guide import main
from taming.downloads import file_hash
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.guidance import arguments, load_classifier_guide
from taming.sampling.conditions import read_picture
from taming.sampling.folder import RECORD
from tests.kit.guidance import Colors, write_clip
from tests.kit.models import FIRST_STAGE, SEGMENTATION
from tests.kit.runs import tiny_run

FEW = ("--steps", "2", "--cutouts", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a first stage of 8 x 8 pixels, 4 x 4 codes."""
    return tiny_run(tmp_path_factory.mktemp("logs") / "run", FIRST_STAGE)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("logs") / "transformer")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("classifier") / "classifier.pt"
    torch.manual_seed(0)
    SmallClassifier(4, 8, 8).save(path)
    return f"small:{path}"


@pytest.fixture
def colors(monkeypatch: pytest.MonkeyPatch) -> Colors:
    """A guide that reads text, in place of CLIP."""
    encoder = Colors()
    monkeypatch.setattr(arguments, "load_clip", lambda name, weights, device: encoder)
    return encoder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def guided(run: Path, out: Path, *flags: str) -> Path:
    main(["-r", str(run), "-o", str(out), "--device", "cpu", *FEW, *flags])
    return out / "7"


def record_of(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        record: dict[str, Any] = json.loads(image.info[RECORD])
        return record


def test_classes(run: Path, classifier: str, tmp_path: Path, capsys: Any) -> None:
    flags = ("--classifier", classifier, "--classes", "3,1", "-n", "2", "--seed", "5", "--film")
    root = guided(run, tmp_path, *flags)
    said = capsys.readouterr()
    assert said.out == f"4 images and grid.png in {root} (4 of them new)\n"
    assert "loss" in said.err and "8/8" in said.err
    names = {str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.png")}
    assert names == {"grid", "1/000000", "1/000001", "3/000000", "3/000001"}
    assert len({(root / f"{name}.png").read_bytes() for name in names}) == 5
    films = list(root.rglob("*.mp4")) + list(root.rglob("*.gif"))
    assert len(films) == 4 and all(path.stat().st_size > 100 for path in films)
    record = record_of(root / "3" / "000001.png")
    wanted = {"class": 3, "number": 1, "seed": 5, "steps": 2, "global_step": 7}
    assert record.items() >= {**wanted, "optimize": "latent", "classifier": classifier}.items()
    assert {"loss", "weights", "config", "cutouts", "start", "dtype"} <= record.keys()

    # The same command again makes what is missing, as it was; another one is refused.
    before = (root / "1" / "000001.png").read_bytes()
    (root / "1" / "000001.png").unlink()
    guided(run, tmp_path, *flags)
    assert capsys.readouterr().out.endswith("(1 of them new)\n")
    assert (root / "1" / "000001.png").read_bytes() == before
    gone, film = films[0].with_suffix(".png"), films[0].read_bytes()
    before = gone.read_bytes()
    films[0].unlink()  # as if it had been drawn without --film
    guided(run, tmp_path, *flags[:-1])
    assert capsys.readouterr().out.endswith("(0 of them new)\n")
    guided(run, tmp_path, *flags)
    assert capsys.readouterr().out.endswith("(1 of them new)\n")
    assert films[0].read_bytes() == film and gone.read_bytes() == before
    more = [*flags[:-1], "--classes", "3,2"]  # of which two are there
    guided(run, tmp_path, *more)
    assert capsys.readouterr().out.endswith("(2 of them new)\n")
    with pytest.raises(SystemExit):
        guided(run, tmp_path, *flags, "--lr", "0.2")
    assert "was sampled with lr 0.1, not 0.2: choose another --outdir" in capsys.readouterr().err


def test_prompts_and_sizes(run: Path, colors: Colors, tmp_path: Path, capsys: Any) -> None:
    prompts = ("--clip", "ViT-B-32", "--prompt", "red:1.5", "--prompt", "blue:-0.5")
    main(["-r", str(run), "--device", "cpu", *FEW, *prompts, "--size", "12,20"])
    root = run / "guided" / "red_1.5_blue_-0.5" / "7"
    assert Image.open(root / "000000.png").size == (20, 12)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("20 x 12 pixels: a step takes ") and len(said) == 2
    assert record_of(root / "000000.png")["prompt"] == ["red:1.5", "blue:-0.5"]


def test_an_image_and_its_mask(run: Path, colors: Colors, photo: Path, tmp_path: Path) -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[1:5, 3:7] = 255  # of codes of 2 x 2 pixels: rows 0 to 2, columns 1 to 3
    Image.fromarray(mask).save(tmp_path / "mask.png")
    init = ("--clip", "x", "--prompt", "red", "--init", str(photo), "--full_size", "--lr", "2")
    roots = [
        guided(run, tmp_path / name, *init, *flags)
        for name, flags in (
            ("whole", ()),
            ("part", ("--mask", str(tmp_path / "mask.png"))),
            ("box", ("--mask", "3,1,7,5")),
            ("pasted", ("--mask", "3,1,7,5", "--paste")),
        )
    ]
    whole, part, box, pasted = (read_picture(root / "000000.png")[0] for root in roots)
    assert whole.shape == (3, 8, 12) and torch.equal(part, box) and not torch.equal(part, whole)
    white = torch.from_numpy(mask > 0)
    original = read_picture(photo)[0]
    assert torch.equal(pasted[:, ~white], original[:, ~white])
    assert torch.equal(pasted[:, white], part[:, white])


def test_a_file_is_the_same_by_another_path_and_not_by_another_weight(
    run: Path,
    colors: Colors,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, new in ((str(photo), 1), ("photo.png", 0), ("./photo.png:1", 0)):
        flags = ("--clip", "x", "--image_prompt", path, "--init", path.removesuffix(":1"))
        guided(run, tmp_path / "out", *flags)
        assert f"({new} of them new)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        guided(run, tmp_path / "out", *flags[:3], "photo.png:2", *flags[4:])
    assert "with image_prompt_weights [1.0], not [2.0]" in capsys.readouterr().err
    Image.open(photo).rotate(180).save(photo)
    with pytest.raises(SystemExit):
        guided(run, tmp_path / "out", *flags)
    assert "another content of the file of --" in capsys.readouterr().err


def test_the_prior_is_a_start(
    transformer: Path, colors: Colors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def start(*arguments: Any, **options: Any) -> Any:
        starts.append((script_prior(*arguments, **options), options))
        return starts[-1][0]

    script_prior = script.prior_start
    monkeypatch.setattr(script, "prior_start", start)
    flags = ("--clip", "x", "--prompt", "red", "--start", "prior", "-n", "2", "--top_k", "3")
    root = guided(transformer, tmp_path, *flags, "--condition", "2", "--lr", "1e-9")
    assert starts[0][1]["label"] == 2 and starts[0][1]["settings"].top_k == 3
    first, second = (each[0].indices[0] for each in starts)
    assert len(first) == 16 and not torch.equal(first, second)
    assert record_of(root / "000000.png")["prior"]["top_k"] == 3
    # The image is that of the codes, as nothing has moved.
    model = script.load_first_stage(transformer, device="cpu")[0]
    with torch.no_grad():
        expected = model.decode_indices(first.view(1, 4, 4))[0].clamp(-1, 1)
    assert (read_picture(root / "000000.png")[0] - expected).abs().max() < 0.005


BAD = [
    ([], "say who guides: --clip for texts"),
    (["--clip", "x", "--features", "lpips"], "--clip and --features are two guides"),
    (["--clip", "x"], "say what to draw"),
    (["--features", "lpips", "--clip_weights", "f", "--prompt", "a"], "--clip_weights are those"),
    (["--clip", "x", "--prompt", ""], "a prompt is empty"),
    (["--clip", "x", "--prompt", "red:very"], "'very' behind the last colon of 'red:very'"),
    (["--clip", "x", "--prompt", "red:-1"], "no prompt has a weight above 0"),
    (["--clip", "x", "--prompt", "red:0"], "no prompt with a weight other than 0"),
    (["--clip", "x", "--classes", "1"], "this guide knows no classes; give --classifier"),
    (["--clip", "x", "--image_prompt", "none.png"], "there is no image none.png"),
    # Before what would have to be downloaded for it.
    (["--features", "lpips:none.pth", "--image_prompt", "none.png"], "there is no image none.png"),
    (["--features", "lpips:none.pth", "--image_prompt", "PHOTO:nan"], "the weight 'nan'"),
    (["--features", "lpips:none.pth", "--image_prompt", "CUT"], "cut.png"),
    (["--classifier", "CLASSIFIER", "--prompt", "a fox"], "this guide reads no text; give --clip"),
    (["--classifier", "small:none.pt", "--prompt", "a fox"], "this guide reads no text"),
    (["--features", "lpips:none.pth", "--classes", "1"], "this guide knows no classes"),
    (["--classifier", "CLASSIFIER", "--classes", "4"], "class 4 is out of range"),
    (["--classifier", "small:none.pt", "--classes", "1"], "none.pt"),
    (["--clip", "x", "--prompt", "red", "--size", "7,8"], "height must be a multiple of 2 pixels"),
    (["--clip", "x", "--prompt", "red", "--size", "8000000"], "too large"),
    (["--clip", "x", "--prompt", "red", "-n", "0"], "--num_samples must be at least 1"),
    (["--clip", "x", "--prompt", "red", "--steps", "0"], "--steps must be from 1"),
    (["--clip", "x", "--prompt", "red", "--start", "noise"], "--start takes random or prior"),
    (["--clip", "x", "--prompt", "red", "--mask", "top-half"], "--mask is about an image"),
    (["--clip", "x", "--prompt", "red", "--condition", "1"], "--condition is what --start prior"),
    (["--clip", "x", "--prompt", "red", "--init", "PHOTO", "--paste"], "--paste is about what"),
    (["--clip", "x", "--prompt", "red", "--init", "PHOTO", "--start", "prior"], "are two starts"),
    (["--clip", "x", "--prompt", "red", "--init", "PHOTO", "--mask", "MASK"], "12 x 8"),
    (["--clip", "x", "--prompt", "red", "--init", "PHOTO", "--mask", "middle"], "--mask takes"),
    (["--clip", "x", "--prompt", "red", "--start", "prior"], "this is a first stage"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_one_sentence_for_bad_input(
    run: Path,
    colors: Colors,
    classifier: str,
    photo: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("L", (12, 9), 255).save(tmp_path / "mask.png")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:60])
    words = {"CLASSIFIER": classifier, "PHOTO": str(photo), "MASK": str(tmp_path / "mask.png")}
    words |= {"CUT": str(tmp_path / "cut.png"), "PHOTO:nan": f"{photo}:nan"}
    with pytest.raises(SystemExit):
        guided(run, tmp_path / "out", *(words.get(flag, flag) for flag in flags))
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_first_stage_of_labels_and_a_class_that_is_needed(
    transformer: Path, colors: Colors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tiny_run(tmp_path / "labels", SEGMENTATION)
    prior = ("--start", "prior")
    for run, more, message in (
        (labels, (), "this first stage is one of labels"),
        (transformer, prior, "give --condition N, 0 to 4"),
        (transformer, (*prior, "--condition", "9"), "class 9 is out of range"),
    ):
        with pytest.raises(SystemExit):
            guided(run, tmp_path / "out", "--clip", "x", "--prompt", "red", *more)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error


def test_the_class_is_near_after_many_steps(run: Path, classifier: str, tmp_path: Path) -> None:
    flags = ("--classifier", classifier, "--classes", "2", "--steps", "40", "--optimize", "logits")
    losses = [
        record_of(guided(run, tmp_path / str(n), *flags, *more) / "2" / "000000.png")["loss"]
        for n, more in enumerate((("--lr", "1e-9"), ("--lr", "0.5")))
    ]
    assert losses[1] < losses[0]
    assert load_classifier_guide(classifier, torch.device("cpu")).n_classes == 4


def test_other_contents_of_the_same_files_are_other_images(
    run: Path, classifier: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, prompt, mask = (tmp_path / name for name in ("own.pt", "prompt.png", "mask.png"))
    own.write_bytes(Path(classifier.removeprefix("small:")).read_bytes())
    prompt.write_bytes(photo.read_bytes())
    Image.new("L", (12, 8), 255).save(mask)
    flags = ["--classifier", f"small:{own}", "--image_prompt", f"{prompt}:0.5", "--classes", "1"]
    flags += ["--init", str(photo), "--mask", str(mask), "--full_size"]
    root = guided(run, tmp_path / "out", *flags)
    assert record_of(root / "1" / "000000.png")["files"].keys() == {
        *("classifier", "image_prompt 1", "init", "mask")
    }
    guided(run, tmp_path / "out", *flags)
    assert "(0 of them new)" in capsys.readouterr().out
    for path, name in (
        *((own, "classifier"), (prompt, "image_prompt 1"), (photo, "init"), (mask, "mask")),
    ):
        kept = path.read_bytes()
        if path == own:
            torch.manual_seed(1)
            SmallClassifier(4, 8, 8).save(path)
        else:
            half = Image.new("L", (12, 8))
            half.paste(255, (0, 0, 6, 8))
            half.convert(Image.open(path).mode).save(path)
        with pytest.raises(SystemExit):
            guided(run, tmp_path / "out", *flags)
        assert f"sampled with another content of the file of --{name}: " in capsys.readouterr().err
        path.write_bytes(kept)


def test_the_weights_of_clip_are_in_the_record(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open_clip", reason="needs the extra 'guide'")
    folder, _ = write_clip(tmp_path / "clip")
    flags = ("--clip", str(folder), "--prompt", "red")
    root = guided(run, tmp_path / "out", *flags)
    weights = folder / "open_clip_model.safetensors"
    assert record_of(root / "000000.png")["files"] == {"clip": file_hash(weights)}
    save_file({k: v + 1 for k, v in load_file(weights).items()}, weights)
    with pytest.raises(SystemExit):
        guided(run, tmp_path / "out", *flags)
    assert "with another content of the file of --clip:" in capsys.readouterr().err
