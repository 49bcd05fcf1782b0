"""What is done with samples and with a reference: by default, by flags, and in files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.compute_statistics import main as compute_statistics
from scripts.evaluate_fid import main as evaluate_fid
from taming.errors import UserError
from taming.evaluation.arguments import (
    EvaluationArguments,
    add_set_flags,
    make_parser,
    open_sets,
    parse_sets,
)
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.reference import REFERENCE, SAMPLES
from taming.evaluation.results import read_result
from taming.evaluation.sources.resize import CENTER, NONE, PILLOW
from tests.kit.images import image_folder, image_sizes
from tests.kit.runs import tiny_run
from tests.kit.training import small_vqgan, write_config

TINY = ("--extractor", "tests.kit.extractor:TinyExtractor", "--device", "cpu")
AS_IT_IS = (NONE, NONE, None)
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By name: samples of 12 pixels, small and large photographs, datasets, and a run."""
    root = tmp_path_factory.mktemp("sets")
    sizes = {f"{n}.png": (20 + n % 3, 30) for n in range(6)}
    found = {
        "samples": image_folder(root / "samples", 6),
        "photographs": image_sizes(root / "photographs", sizes),
        "large": image_folder(root / "large", 2, 300, 300),
        "small": image_folder(root / "small", 2, 20, 30),
        "wide": image_folder(root / "wide", 1, 20, 300),
        "prepared": image_folder(root / "prepared", 2, 256, 128),
        "above": image_folder(root / "above", 2, 257, 128),
        "run": tiny_run(root / "run"),
    }
    (root / "list.txt").write_text("\n".join(str(root / "photographs" / name) for name in sizes))
    target, params = "taming.data.custom.CustomTest", {"size": 16}
    params |= {"test_images_list_file": str(root / "list.txt")}  # type: ignore[dict-item]
    config = small_vqgan()
    config["data"]["params"]["validation"] = {"target": target, "params": params}
    found["files"] = Path(write_config(root, config))
    (root / "items").mkdir()
    found["items"] = Path(write_config(root / "items", small_vqgan()))
    return {name: str(path) for name, path in found.items()}


def opened(
    sets: dict[str, str], *words: str, roles: tuple[str, ...] = (SAMPLES, REFERENCE)
) -> list[Any]:
    """The sets of these words, of which names of `sets` stand for their paths."""
    parser = make_parser("For tests.", EvaluationArguments)
    add_set_flags(parser, roles)
    args, names, overrides = parse_sets(parser, [sets.get(word, word) for word in words], most=2)
    return open_sets(names, args, overrides, CPU)


def resizings(sets: dict[str, str], *words: str, **options: Any) -> list[Any]:
    found = [images.resizing for images in opened(sets, *words, **options)]
    return [(one.resize, one.crop, one.size) for one in found]


def paper(side: int, resize: str = PILLOW, crop: str = CENTER) -> tuple[Any, ...]:
    return resize, crop, (side, side)


RESIZE, SIZE, CROP = "--reference_resize", "--reference_size", "--reference_crop"


@pytest.mark.parametrize(
    ("words", "of_samples", "of_reference"),
    [
        # Samples are as they are, and a reference of real images is brought to their size.
        (("samples", "photographs"), AS_IT_IS, paper(12)),
        (("samples", "samples"), AS_IT_IS, paper(12)),
        (("large", "photographs"), AS_IT_IS, paper(300)),
        (("small", "photographs"), AS_IT_IS, (PILLOW, CENTER, (20, 30))),
        (("samples", "files"), AS_IT_IS, paper(12)),
        (("run", "photographs"), AS_IT_IS, paper(8)),
        (("run", "files"), AS_IT_IS, paper(8)),
        (("run", "photographs", "--size", "16"), AS_IT_IS, paper(16)),
        (("run", "photographs", "--size", "16,8"), AS_IT_IS, (PILLOW, CENTER, (16, 8))),
        # Datasets are real images on both sides; a run as reference is samples.
        (("files", "files"), paper(16), paper(16)),
        (("files", "photographs"), paper(16), paper(16)),
        (("items", "items"), paper(16), paper(16)),
        (("files", "photographs", RESIZE, "opencv"), paper(16, "opencv"), paper(16, "opencv")),
        (("files", "files", RESIZE, "none"), AS_IT_IS, AS_IT_IS),
        (("files", "files", SIZE, "10"), paper(10), paper(10)),
        (("files", "files", SIZE, "12", "--samples_size", "10"), paper(10), paper(12)),
        (("samples", "run"), AS_IT_IS, AS_IT_IS),
        # Samples of several sizes are of none.
        (("photographs", "photographs"), AS_IT_IS, AS_IT_IS),
        (("photographs", "files"), AS_IT_IS, paper(16)),
        (("photographs", "photographs", SIZE, "10"), AS_IT_IS, paper(10)),
        # Flags.
        (("samples", "photographs", RESIZE, "none"), AS_IT_IS, AS_IT_IS),
        (("samples", "files", RESIZE, "none"), AS_IT_IS, AS_IT_IS),
        (
            ("samples", "photographs", RESIZE, "none", CROP, "center"),
            AS_IT_IS,
            (NONE, CENTER, None),
        ),
        (("samples", "files", CROP, "none"), AS_IT_IS, paper(12, crop=NONE)),
        (("samples", "run", SIZE, "9"), AS_IT_IS, paper(9)),
        (("samples", "files", RESIZE, "torch-antialias"), AS_IT_IS, paper(12, "torch-antialias")),
        (("large", "files", "--samples_resize", "opencv"), paper(16, "opencv"), paper(16)),
        (("large", "small", "--samples_size", "64"), paper(64), paper(64)),
        (("large", "files", "--samples_resize", PILLOW, SIZE, "32"), paper(32), paper(32)),
        (("run", "files", "--samples_size", "32"), paper(32), paper(32)),
        (("large", "files", "--samples_crop", "none"), AS_IT_IS, paper(300)),
        (("small", "photographs", "--samples_crop", "center"), (NONE, CENTER, None), paper(20)),
        (("files", "files", "--samples_resize", "none"), AS_IT_IS, paper(16)),
    ],
)
def test_what_is_done_with_two_sets(
    sets: dict[str, str], words: tuple[str, ...], of_samples: Any, of_reference: Any
) -> None:
    assert resizings(sets, *words) == [of_samples, of_reference]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("samples",), paper(12)),  # of one size already
        (("small",), (PILLOW, CENTER, (20, 30))),
        (("large",), paper(256)),
        (("wide",), paper(256)),
        (("prepared",), (PILLOW, CENTER, (256, 128))),
        (("above",), paper(256)),
        (("photographs",), paper(256)),
        (("files",), paper(16)),  # what a model of them is trained on
        (("items",), paper(16)),
        (("run",), AS_IT_IS),
        (("photographs", SIZE, "64", RESIZE, "opencv"), paper(64, "opencv")),
        (("photographs", RESIZE, "none"), AS_IT_IS),
    ],
)
def test_what_is_done_with_a_reference_alone(
    sets: dict[str, str], words: tuple[str, ...], expected: Any
) -> None:
    assert resizings(sets, *words, roles=(REFERENCE,)) == [expected]


def test_samples_alone_are_as_they_are(sets: dict[str, str]) -> None:
    assert resizings(sets, "files", roles=(SAMPLES,)) == [AS_IT_IS]
    resized = resizings(sets, "files", "--samples_size", "9", roles=(SAMPLES,))
    assert resized == [paper(9)]
    assert resizings(sets, "files") == [paper(16)]  # beside a reference that is not needed
    with pytest.raises(UserError, match="unknown argument --reference_size"):
        opened(sets, "files", SIZE, "9", roles=(SAMPLES,))


def test_items_that_are_no_files_are_told(
    sets: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    opened(sets, "samples", "files")
    opened(sets, "samples", "items", RESIZE, "none")
    assert not caplog.messages
    opened(sets, "samples", "items")
    assert [text for text in caplog.messages if sets["items"] in text and "no files" in text]
    caplog.clear()
    opened(sets, "photographs", "photographs")
    assert "samples are of several sizes" in caplog.messages[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("samples", "files", RESIZE, "pilow"), "no --reference_resize 'pilow'"),
        (("samples", "files", CROP, "centre"), "--reference_crop 'centre'; did you mean 'center'"),
        (("samples", "files", "--samples_resize", "cv2"), "no --samples_resize 'cv2'"),
        (("samples", "files", SIZE, "0"), "--reference_size must be at least 1, not 0"),
        (("samples", "files", RESIZE, "none", SIZE, "9"), "--reference_size 9 has no effect with"),
        (("samples", SIZE, "9"), "there is no set to resize; leave out --reference_resize"),
    ],
)
def test_flags_that_say_nothing_sensible(
    sets: dict[str, str], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened(sets, *words)


def statistics(sets: dict[str, str], out: Path, *words: str) -> str:
    path = str(out / f"{len(list(out.iterdir()))}.npz")
    compute_statistics([*(sets.get(word, word) for word in words), path, *TINY])
    return path


def test_statistics_are_of_their_resize(sets: dict[str, str], tmp_path: Path) -> None:
    def sentence(file: str, *flags: str, samples: str = "samples") -> str:
        with pytest.raises(UserError) as error:
            opened(sets, samples, file, *flags)
        return str(error.value)

    small = ("photographs", SIZE, "12")
    usual = statistics(sets, tmp_path, *small)
    opened(sets, "samples", usual)
    opened(sets, "photographs", usual)  # of several sizes
    assert "resize pillow-antialias to 12 x 12, crop center" in sentence(usual, RESIZE, "opencv")
    assert "this evaluation's (resize none, crop none)" in sentence(usual, RESIZE, "none")
    assert "to 12 x 12" in sentence(usual, samples="large")
    for flags in (("--reference_resize", "opencv"), ("--reference_crop", "none")):
        other = statistics(sets, tmp_path, *small, *flags)
        text = sentence(other)
        assert text.startswith(f"{other} is of images with another resize or crop (")
        (hint,) = re.findall("evaluate with (.*)", text)
        opened(sets, "samples", other, *hint.split())
    # `--reference_size` is of squares: other sizes are those of samples.
    oblong = statistics(sets, tmp_path, "small")
    text = sentence(oblong)
    (hint,) = re.findall("or evaluate samples of 30 x 20 pixels with (.*)", text)
    assert SIZE not in hint
    opened(sets, "small", oblong, *hint.split())
    # As they are: the same only if they have the size.
    opened(sets, "samples", statistics(sets, tmp_path, "samples", RESIZE, "none"))
    opened(sets, "run", statistics(sets, tmp_path, "run", "-n", "1", "--classes", "0,1"))
    whole = statistics(sets, tmp_path, "photographs", RESIZE, "none")
    assert "(resize none, crop none) than" in sentence(whole)
    opened(sets, "samples", whole, RESIZE, "none")
    trained = statistics(sets, tmp_path, "files", RESIZE, "none")
    assert "(resize none, crop none) than" in sentence(trained, samples="files")
    with pytest.raises(UserError, match="statistics hold no images to resize"):
        opened(sets, usual, "samples", "--samples_size", "9")
    assert resizings(sets, "samples", "photographs", SIZE, "9")[1] == paper(9)


def test_statistics_that_do_not_say_it(
    sets: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for protocol in ({}, {"images": {"kind": "folder"}}, {"images": None}):
        file = Statistics(np.zeros(2), np.eye(2), protocol=protocol).save(tmp_path / "a.npz")
        opened(sets, "samples", str(file))
        said = f"{file} does not say how its images were resized and cropped"
        assert caplog.messages[-1] == said
    sizes: list[Any] = [{}, {"a": 1}, {"8x9": 1, "9x9": 1}, ["8x9"]]
    for size in sizes:
        found = Statistics(np.zeros(2), np.eye(2), protocol={"images": {"sizes": size}})
        assert found.image_size() is None
    found = Statistics(np.zeros(2), np.eye(2), protocol={"images": {"sizes": {"8x9": 2}}})
    assert found.image_size() == (9, 8)


def test_a_result_says_how_its_images_were_resized(sets: dict[str, str], tmp_path: Path) -> None:
    evaluate_fid([sets["samples"], sets["files"], *TINY, "-o", str(tmp_path / "out")])
    (path,) = (tmp_path / "out").glob("*.json")
    about = read_result(path)["sets"]
    assert about["reference"]["images_are"] == "the files"
    assert [about[role]["resize"] for role in (SAMPLES, REFERENCE)] == [NONE, PILLOW]
    assert [about[role]["size"] for role in (SAMPLES, REFERENCE)] == [None, [12, 12]]
    assert about["reference"]["crop"] == CENTER
    table = path.with_suffix(".md").read_text()
    assert re.search(r"reference.resize +\| pillow-antialias", table)
    evaluate_fid([sets["files"], sets["files"], *TINY, "-o", str(tmp_path / "same")])
    (path,) = (tmp_path / "same").glob("*.json")
    assert read_result(path)["metrics"]["fid"] == pytest.approx(0, abs=1e-6)
