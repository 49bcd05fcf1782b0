"""In bf16 images depend on how many are sampled at once: a folder goes on as it was begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import complete, make_samples, make_scene_samples
from scripts.evaluate_scenes import Job
from taming.evaluation.sources.conditioned_run import ConditionedRunSource
from taming.models.cond_transformer import Net2NetTransformer
from taming.sampling import sample_images
from taming.sampling.folder import RECORD
from taming.sampling.plan import SamplingPlan
from tests.kit.models import transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import SEGMENTED, write_data
from tests.scripts.test_make_scene_samples import SCENES, write_scenes


def completions(folder: Path) -> tuple[Callable[..., Any], list[str]]:
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    image = ("--image", str(folder / "noise.png"), "--keep", "top-half")
    return complete.main, ["-r", str(tiny_run(folder / "run")), *image, "--condition", "1"]


def items(folder: Path) -> tuple[Callable[..., Any], list[str]]:
    run = tiny_run(folder / "run", transformer_config(**SEGMENTED))
    data = write_data(folder / "data.yaml", 5)
    return make_samples.main, ["-r", str(run), "-c", str(data)]


def scenes(folder: Path) -> tuple[Callable[..., Any], list[str]]:
    run = tiny_run(folder / "run", transformer_config(**SCENES))
    data = write_scenes(folder)
    return make_scene_samples.main, ["-r", str(run), "-b", str(data), "-R", "8,8"]


@pytest.mark.parametrize(
    ("case", "count"),
    [(completions, "-n"), (items, "-n"), (scenes, "-N")],
    ids=["complete", "make_samples", "make_scene_samples"],
)
def test_what_is_missing_is_sampled_in_batches_as_before(
    case: Any, count: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    decode = Net2NetTransformer.decode_to_img

    def decoded(self: Net2NetTransformer, index: Any, zshape: Any) -> Any:
        sizes.append(len(index))
        return decode(self, index, zshape)

    main, words = case(tmp_path)
    words += ["-o", str(tmp_path / "out"), "--device", "cpu", "--precision", "bf16", count, "5"]
    main([*words, "--batch_size", "3"])
    made = {
        path: path.read_bytes()
        for path in sorted((tmp_path / "out").rglob("0*.png"))
        if RECORD in Image.open(path).info
    }
    assert len(made) == 5
    for path in list(made)[1::2]:
        path.unlink()
    monkeypatch.setattr(Net2NetTransformer, "decode_to_img", decoded)
    main([*words, "--batch_size", "25"])
    assert sizes[-1] == 3  # filled up
    assert {path: path.read_bytes() for path in made} == made
    assert json.loads(Image.open(min(made)).info[RECORD])["batch_size"] == 3


@pytest.mark.parametrize("kind", ["items", "scenes"])
def test_evaluations_fill_their_last_batch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not beyond the set; and in float32 they do not."""
    noted: list[tuple[int, bool]] = []

    def sampled(*arguments: Any, **options: Any) -> Any:
        noted.append((options["batch_size"], options["filled"]))
        return sample_images(*arguments, **options)

    for module in ("taming.sampling.items", "taming.evaluation.sources.scenes"):
        monkeypatch.setattr(f"{module}.sample_images", sampled)
    _, words = (items if kind == "items" else scenes)(tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        if kind == "items":
            _, run, _, data = words
            source: Any = ConditionedRunSource(run, SamplingPlan(base=(data,), dtype=dtype))
        else:
            flags = ("--extractor", "tests.kit.extractor:TinyExtractor", "-N", "5")
            source = replace(Job([*words, *flags, "--device", "cpu"]).samples, dtype=dtype)
        keys = set()
        for batch_size, expected in ((3, 3), (25, 5)):
            noted.clear()
            if kind == "items":
                source.plan = replace(source.plan, batch_size=batch_size)
            else:
                source = replace(source, batch_size=batch_size)
            halves = dtype == torch.bfloat16
            # In bf16 the images are those of the source's own batches, whatever a runner takes.
            asked = 2 if halves else batch_size
            made = [image.index for images in source.batches(asked) for image in images]
            assert sorted(made) == [0, 1, 2, 3, 4]
            assert set(noted) == {(expected, halves)}
            keys.add(source.content_key())
        assert len(keys) == (2 if halves else 1)


def test_in_float32_they_do_not(tmp_path: Path) -> None:
    main, words = completions(tmp_path)
    words += ["-o", str(tmp_path / "out"), "--device", "cpu", "-n", "5"]
    main([*words, "--batch_size", "3"])
    made = {path: path.read_bytes() for path in (tmp_path / "out").rglob("0*.png")}
    min(made).unlink()
    main([*words, "--batch_size", "25"])
    assert {path: path.read_bytes() for path in made} == made
    assert "batch_size" not in json.loads(Image.open(min(made)).info[RECORD])
