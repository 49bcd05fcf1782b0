from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from scripts import make_scene_samples as script
from scripts.make_scene_samples import main
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.seeding import SeededDataset
from taming.sampling import SampleSettings, sample_images
from taming.sampling.arguments import DataArguments, SampleArguments
from taming.sampling.folder import RECORD
from tests.kit.images import truncate
from tests.kit.models import scene_config, transformer_config
from tests.kit.runs import tiny_run
from tests.kit.scenes import OPTIONS, coco_content, scene_run, write_coco
from tests.kit.scenes import write_scenes as write_example_scenes

SCENES = scene_config(block_size=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_scenes(folder)
    return tiny_run(folder / "run", transformer_config(**SCENES))


def write_scenes(folder: Path) -> Path:
    """A YAML of a data set with one scene."""
    options = OPTIONS | {"no_tokens": 64, "target_image_size": 8, "data_path": str(folder / "coco")}
    write_coco(folder / "coco")
    target = "taming.data.annotated_objects_coco.AnnotatedObjectsCoco"
    data = {"params": {"validation": {"target": target, "params": options}}}
    OmegaConf.save(OmegaConf.create({"data": data}), folder / "data.yaml")
    return folder / "data.yaml"


def sample(run: Path, out: Path, *flags: str) -> Path:
    data = run.parent / "data.yaml"
    main(["-r", str(run), "-b", str(data), "--outdir", str(out), "--device", "cpu", *flags])
    return next(out.iterdir())


@pytest.mark.parametrize("resolution", ["8,8", "12,10"])
def test_scenes_of_data(
    run: Path, tmp_path: Path, resolution: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sample(run, tmp_path, "-R", resolution, "-N", "2")
    said = re.findall(
        r"(.*) pixels are (.*) tokens for each of (.*) images: about", capsys.readouterr().out
    )
    assert said == ([] if resolution == "8,8" else [("10 x 12", "30", "2")])
    height, width = map(int, resolution.split(","))
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    assert names == [
        "layouts/000000.png",
        "originals/000000.png",
        "reconstructions/000000.png",
        "samples/000000/000000.png",
        "samples/000000/000001.png",
    ]
    for name in (names[0], names[-1]):
        assert Image.open(root / name).size == (width, height)
    with Image.open(root / names[-1]) as image:
        record = json.loads(image.info[RECORD])
    assert (record["size"], record["conditional"]) == ([height, width], "objects_bbox")
    before = (root / names[-1]).read_bytes()
    (root / names[-1]).unlink()
    sample(run, tmp_path, "-R", resolution, "-N", "2", "--batch_size", "1")
    assert (root / names[-1]).read_bytes() == before


def test_layouts_that_a_person_writes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = [
        {"class": "person", "box": [0, 0.25, 0.5, 0.75], "group": True},
        {"class": "sky", "box": [0, 0, 1, 0.5]},
    ]
    (tmp_path / "street.json").write_text(json.dumps(layout))
    (tmp_path / "sea.yaml").write_text("- {class: sky, box: [0, 0, 1, 1]}\n")
    files = [str(tmp_path / name) for name in ("street.json", "sea.yaml")]
    given = []

    def sampled(model: Any, requests: Any, settings: Any, **options: Any) -> Any:
        requests = list(requests)
        given.append((requests[0].label, settings.top_p, options["batch_size"], options["seed"]))
        return sample_images(model, requests, settings, **options)

    monkeypatch.setattr("taming.sampling.filling.sample_images", sampled)
    flags = ("-R", "8,8", "-N", "1", "--seed", "3", "-p", "0.9", "--batch_size", "2")
    root = sample(run, tmp_path / "out", *flags, "--layout", *files)
    (street, *others), (sea, *same) = given
    assert others == same == [0.9, 2, 3] and street != sea  # random numbers of their own
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    assert names == [
        "layouts/sea.png",
        "layouts/street.png",
        "samples/sea/000000.png",
        "samples/street/000000.png",
    ]


def test_samples_of_a_layout_do_not_depend_on_others(run: Path, tmp_path: Path) -> None:
    """Whatever their order, and as they are continued."""
    for name, box in (("a", "[0, 0, 1, 0.5]"), ("b", "[0, 0.25, 0.5, 0.75]")):
        (tmp_path / f"{name}.yaml").write_text(f"- {{class: person, box: {box}}}\n")
    first, second = (str(tmp_path / f"{name}.yaml") for name in "ab")
    flags = ("-R", "8,8", "-t", "3", "--layout")
    sample(run, tmp_path / "both", "-N", "1", *flags, first, second)
    root = sample(run, tmp_path / "both", "-N", "2", *flags, second)
    alone = sample(run, tmp_path / "alone", "-N", "2", *flags, second)
    pictures = [
        (place / "samples" / "b" / f"{number:06}.png").read_bytes()
        for place in (root, alone)
        for number in (0, 1)
    ]
    assert pictures[:2] == pictures[2:] and pictures[0] != pictures[1]


def test_a_layout_that_has_changed_is_another_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = tmp_path / "sea.yaml"
    layout.write_text("- {class: sky, box: [0, 0, 1, 1]}\n")
    flags = ("-R", "8,8", "-N", "1", "--layout", str(layout))
    root = sample(run, tmp_path / "out", *flags)
    plot = (root / "layouts" / "sea.png").read_bytes()
    layout.write_text("# the same\n- {class: sky, box: [0, 0, 1, 1]}\n")
    sample(run, tmp_path / "out", *flags)
    assert "0 new samples" in capsys.readouterr().out
    layout.write_text("- {class: sky, box: [0, 0, 1, 0.5]}\n")
    with pytest.raises(SystemExit):
        sample(run, tmp_path / "out", *flags)
    assert "was sampled with another condition (what it comes from" in capsys.readouterr().err
    assert (root / "layouts" / "sea.png").read_bytes() == plot


def test_as_many_layouts_of_the_data_as_are_wanted(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][2]["bbox"] = [0, 0, 24, 16]  # of the second scene
    data = SeededDataset(AnnotatedObjectsCoco(**OPTIONS, data_path=write_coco(tmp_path, content)))
    for count, made in ((None, 2), (1, 1), (9, 2)):
        own = script.Arguments(
            data=DataArguments(),
            sampling=SampleArguments(settings=SampleSettings()),
            num_layouts=count,
        )
        layouts = script.scenes(own, data)
        assert len(layouts.names) == len(list(layouts)) == made
        assert layouts.names == [scene.name for _, (scene, _) in layouts]
    assert own.size == (256, 256) and own.samples_per_layout == 4


def test_damaged_images_are_left_out_and_what_is_there_is_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scene_run(write_example_scenes(tmp_path / "data", 3))
    image = tmp_path / "data/data/coco_annotations/val2017/000000000002.jpg"
    content = image.read_bytes()
    truncate(image, 0.6)
    words = ["-r", str(run), "--outdir", str(tmp_path / "out"), "--device", "cpu"]
    words += ["-R", "8,10", "-N", "2"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr()
    assert stop.value.code == 1 and f"left out: {image}" in said.err and "(4 new" in said.out
    image.write_bytes(content)
    (tmp_path / "out/7_100_1.0/samples/000002/000001.png").unlink()
    main(words)
    said = capsys.readouterr()
    assert "for each of 3 images" in said.out and "(3 new" in said.out
    assert "3/3" in said.err and "/6" not in said.err


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("- {class: persom, box: [0, 0, 1, 1]}", "no class 'persom'; did you mean 'person'?"),
        ("- {class: person, box: [0, 0, 2, 1]}", "object 1: the box is"),
        ("- {class: person, box: [0.5, 0, 0.6, 1]}", "inside of it"),
        ("- {class: person}", "must have a class and a box"),
        ("- {class: person, box: [0, 0, 1, 1], colour: red}", "perhaps group"),
        ("person", "must be a list of objects"),
        ("[]", "a.yaml has no objects; give at least one, with a class and a box"),
        ("- {class: [", "neither YAML nor JSON"),
        ("- {class: person, box: [0, 0, 1, 1]}\n" * 4, "4 objects; this model knows 3"),
    ],
)
def test_one_sentence_for_wrong_layouts(
    run: Path, tmp_path: Path, layout: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(layout)
    with pytest.raises(SystemExit):
        sample(run, tmp_path / "out", "-R", "8,8", "--layout", str(tmp_path / "a.yaml"))
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-R", "8x8"], "--size: a size is height,width"),
        (["-R", "9,8"], "height must be a multiple of 2"),
        (["-R", "8,8", "-C", "objects_boxes"], "no condition 'objects_boxes'; did you mean"),
        (["-R", "8,8", "-N", "0"], "--samples_per_layout must be"),
        (["-R", "8,8", "--layout", "nowhere.yaml"], "there is no layout"),
        (["-R", "8,8", "--layout", "a/x.yaml", "b/x.json"], "a/x.yaml and b/x.json have the same;"),
    ],
)
def test_one_sentence_for_wrong_flags(
    run: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sample(run, tmp_path / "out", *flags)
    assert message in capsys.readouterr().err


def test_steps_that_a_model_does_not_have_are_refused_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sample(run, tmp_path / "out", "-R", "8,8", "--steps", "4")
    said = capsys.readouterr().err
    assert "one code after the other" in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
